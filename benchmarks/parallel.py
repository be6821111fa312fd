"""One run in two processes against one: what differs, what each process holds, and how much faster it is.

Usage: parallel.py MODEL [--data NAME] [--parts agree,scale]

- agree: the same three steps (float32, gloo) by each method in each way to share a model. The largest relative
  differences of the loss, of the norm of the gradient and of the weights, and the bytes that a process holds in the
  end: weights, state of the optimizer, and all its memory that is no page of a file (RssAnon)
- scale: tokens a second of one process with one thread, of two with one thread each, and of one with two, in turn
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
sys.path.append(str(Path(__file__).parents[1] / "tests"))

import torch
from lmf.config import make
from lmf.models import load_model, load_tokenizer
from lmf.parallel import sharing
from lmf.plan import make_plan
from lmf.settings import WAYS, RunSettings
from lmf.sources import find_model
from lmf.training.loop import train
from tinyrun import PLUGINS, apart, ended, fork, held, processes

METHODS: dict[str, dict[str, Any]] = {
    "full": {},
    "freeze": {"last_layers": 4},
    "lora": {"rank": 8},
    "lisa": {"interval": 2, "active_layers": 2},
}
COMMON = {"template": "chatml", "batch_size": 7, "warmup": 0.0, "max_tokens": 512, "micro_batch_tokens": 512}
KEYS = ("loss", "gradient_norm", "weights")
LONGEST = 1000  # seconds of a run
TURNS = 3  # measurements of each kind


def as_files(name: str, folder: Path) -> Path:
    """Write a model as safetensors files in float32, which processes can map."""

    def write() -> None:
        source = find_model(name, PLUGINS)
        load_model(source, torch.float32).save_pretrained(folder)
        load_tokenizer(source).save_pretrained(folder)

    assert ended(fork(write), LONGEST) == 0  # in a process of its own, which takes its memory with it
    return folder


def run(options: argparse.Namespace, output: Path, method: str, way: str, own: dict[str, Any], **settings: Any) -> None:
    values = {
        "model": str(options.folder),
        "data": [options.data],
        "output": output,
        "parallel": way,
        **COMMON,
        **settings,
    }
    chosen = make(PLUGINS.methods[method].options, own)
    train(make_plan(PLUGINS, "train", method, make(RunSettings, values), None, chosen))


def keep_what_is_held(way: str, folder: Path) -> None:
    """Have each process write down what it holds when the last checkpoint is made."""
    kind = sharing.kind_of(way)
    finite = kind.finite

    def write(shared: Any) -> bool:
        weights, state = held(shared)
        ctypes.CDLL(None).malloc_trim(0)  # what is free goes back
        status = Path("/proc/self/status").read_text().splitlines()
        (anonymous,) = (int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))
        file = folder / f"held-{shared.processes.rank}.json"
        file.write_text(json.dumps({"weights": weights, "state": state, "memory": anonymous}))
        return finite(shared)

    kind.finite = write  # type: ignore[method-assign]


def started(count: int, work: Callable[[], None]) -> list[int]:
    """Do work in so many processes. Returns their exit codes."""
    return processes(count, lambda rank: work(), LONGEST) if count > 1 else [ended(fork(work), LONGEST)]


def step_thrice(options: argparse.Namespace, output: Path, method: str, way: str, own: dict[str, Any]) -> None:
    keep_what_is_held(way, output)
    run(options, output / "out", method, way, own, steps=3, dtype="float32", learning_rate=1e-4)


def with_threads(threads: int, *args: Any, **settings: Any) -> None:
    torch.set_num_threads(threads)
    run(*args, **settings)


def agree(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    yield f"{'method':8}{'way':8}{'processes':>10}{'loss':>10}{'gradient':>10}{'weights':>10}" + "".join(
        f"{name:>14}" for name in ("weights MB", "state MB", "memory MB")
    )
    for method, own in METHODS.items():
        for way in ("", *WAYS):  # at first one process
            if way and way not in PLUGINS.methods[method].parallel:
                continue
            output, count = folder / f"{method}-{way or 'alone'}", 2 if way else 1
            output.mkdir()

            codes = started(count, partial(step_thrice, options, output, method, way or "ddp", own))
            if any(codes):
                yield f"{method:8}{way:8}: ends with {codes}"
                continue
            found = [json.loads((output / f"held-{rank}.json").read_text()) for rank in range(count)]
            most = [f"{max(each[key] for each in found) / 1e6:14,.0f}" for key in ("weights", "state", "memory")]
            differs = apart(folder / f"{method}-alone/out", output / "out") if way else {}
            shown = "".join(f"{differs[key]:10.1e}" if way else f"{'':10}" for key in KEYS)
            yield f"{method:8}{way or '-':8}{count:10}{shown}{''.join(most)}"


def scale(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    kinds = {"1 process, 1 thread": (1, 1, "ddp"), "1 process, 2 threads": (1, 2, "ddp")}
    kinds |= {f"2 processes, 1 thread each, {way}": (2, 1, way) for way in ("ddp", "fsdp", "zero2")}
    speeds: dict[str, list[float]] = {name: [] for name in kinds}
    for turn in range(TURNS):
        for name, (count, threads, way) in kinds.items():
            output = folder / f"{turn} {name}"
            settings = {"steps": 5, "learning_rate": 1e-5, "batch_size": 16}
            codes = started(count, partial(with_threads, threads, options, output, "full", way, {}, **settings))
            assert not any(codes), codes
            lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
            speeds[name] += [line["tokens_per_second"] for line in lines[1:]]  # the first step also makes the state
    first = statistics.median(speeds["1 process, 1 thread"])
    for name, found in speeds.items():
        middle = statistics.median(found)
        yield f"{name:36}{middle:8.0f} tokens/s  {min(found):.0f} to {max(found):.0f}{middle / first:8.2f}"


def main() -> int:
    parser = argparse.ArgumentParser(description="One run in two processes against one.")
    parser.add_argument("model", help="what --model takes")
    parser.add_argument("--data", default="cards", help="what --data takes (cards)")
    parser.add_argument("--parts", default="agree,scale", help="what to measure (agree,scale)")
    options = parser.parse_args()
    names = ("torch", "transformers", "accelerate", "deepspeed")
    print(f"{date.today()}, Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores")
    print(", ".join(f"{name} {version(name)}" for name in names) + f", {options.model}")
    for name, part in (("agree", agree), ("scale", scale)):
        if name in options.parts.split(","):
            print(f"\n{name}", flush=True)
            with tempfile.TemporaryDirectory() as folder:
                options.folder = as_files(options.model, Path(folder) / "model")
                for line in part(options, Path(folder)):
                    print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
