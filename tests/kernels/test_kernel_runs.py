"""Kernels are at work in a run, whatever it does with the model."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import lmf
import pytest
from lmf.config import make
from lmf.plan import make_plan
from lmf.training.loop import train
from tinyrun import PLUGINS, Notes, apart, processes, run, talks

# of numpy, which computes what is beyond the end of a document, too; and of torch, which DeepSpeed uses as it was
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
NAMES = tuple(name for name in PLUGINS.kernels if name.startswith("lmf") and name != "lmf-hopper")
SHORT: dict[str, Any] = {"steps": 2, "batch_size": 2, "max_tokens": 32, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talks(tmp_path_factory.mktemp("data") / "talks.jsonl", 8)


def test_every_layer_is_computed_by_them(tiny, data, tmp_path):
    calls: Counter[str] = Counter()

    def counted(kernel: lmf.Kernel) -> lmf.Kernel:
        def load() -> Any:
            function = kernel.load()

            def count(*given: Any, **more: Any) -> Any:
                calls[kernel.part] += 1
                return function(*given, **more)

            return count

        return replace(kernel, load=load)

    values = {"model": str(tiny), "data": str(data), "output": tmp_path, "template": "chatml", "dtype": "float32"}
    planned = make_plan(PLUGINS, "train", "full", make(lmf.RunSettings, values | SHORT | {"kernels": NAMES}))
    planned = replace(planned, kernels={part: counted(each) for part, each in planned.kernels.items()})
    begun: list[Counter[str]] = []

    class Begin(Notes):
        def start(self, done: int, steps: int) -> None:
            begun.append(Counter(calls))

    train(planned, Begin())
    in_steps = calls - begun[0]
    layers = 4
    once = {"attention": layers, "rotary": layers, "glu": layers, "add_rms_norm": layers, "rms_norm": layers + 1}
    assert in_steps == {part: SHORT["steps"] * count for part, count in (once | {"linear_cross_entropy": 1}).items()}


@pytest.mark.parametrize(
    ("method", "options"), [("full", {}), ("lora", {"rank": 4}), ("lisa", {"interval": 1, "active_layers": 1})]
)
def test_with_checkpointing_they_learn_the_same(method, options, tiny, data, tmp_path):
    given = SHORT | {"gradient_checkpointing": True, "options": options}
    ours = run(tiny, data, tmp_path / "with", method, kernels=NAMES, **given)
    plain = run(tiny, data, tmp_path / "without", method, kernels=("none",), **given)
    assert max(apart(ours, plain)[what] for what in ("loss", "gradient_norm")) <= 1e-5


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_in_two_processes_they_learn_the_same(way, tiny, data, tmp_path):
    plain = run(tiny, data, tmp_path / "without", kernels=("none",), **SHORT)
    work = lambda rank: run(tiny, data, tmp_path / "with", kernels=NAMES, parallel=way, **SHORT)  # noqa: E731
    assert processes(2, work) == [0, 0]
    assert max(apart(tmp_path / "with", plain)[what] for what in ("loss", "gradient_norm")) <= 1e-5
