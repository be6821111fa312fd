"""Runs of the tiny model, as the tests of the runtime need them: written in a line, done in a second."""

import hashlib
import json
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lmf import Plugins, RunSettings
from lmf.config import make
from lmf.plan import Plan, make_plan
from lmf.report import Reporter
from lmf.training import train
from safetensors.torch import load_file

PLUGINS = Plugins()
WORDS = "the user and assistant say hello what is one two three answer".split()


def talks(file: Path, count: int, turns: int = 1) -> Path:
    """Write ``count`` conversations of different lengths; each record differs from the others."""
    lines = []
    for i in range(count):
        messages = []
        for turn in range(turns):
            question = " ".join(WORDS[(i + turn + j) % 12] for j in range(1 + (7 * i + 3 * turn) % 9))
            answer = " ".join(WORDS[(5 * i + turn + j) % 12] for j in range(1 + (4 * i + turn) % 7))
            messages += [{"role": "user", "content": f"{i} {question}"}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": messages}) + "\n")
    file.write_text("".join(lines), encoding="utf-8")
    return file


def plan(
    model: Path,
    data: Path | Sequence[Path],
    output: Path,
    method: str = "full",
    *,
    objective: str = "train",
    options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Plan:
    """Plan a run in float32 with a learning rate at which the tiny model moves."""
    files = [data] if isinstance(data, Path) else data
    values = {"model": str(model), "data": [str(file) for file in files], "output": output}
    values |= {"dtype": "float32", "learning_rate": 1e-3}
    if objective == "train":
        values["template"] = "chatml"
    own = make(PLUGINS.methods[method].options, options or {})
    return make_plan(PLUGINS, objective, method, make(RunSettings, values | settings), None, own)


def run(*args: Any, report: Reporter | None = None, **kwargs: Any) -> Path:
    """Plan a run and do it."""
    return train(plan(*args, **kwargs), report)


class Notes(Reporter):
    """Keeps what a run tells."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.samples: list[tuple[str, str, str]] = []
        self.ended = False

    def note(self, text: str) -> None:
        self.notes.append(text)

    def sample(self, when: str, prompt: str, reply: str) -> None:
        self.samples.append((when, prompt, reply))

    def end(self) -> None:
        self.ended = True


class At(Notes):
    """Does something once, right after an optimizer step."""

    def __init__(self, step: int, action: Callable[[], Any]):
        super().__init__()
        self.at, self.action = step, action

    def step(self, entry: Mapping[str, Any]) -> None:
        if entry["step"] == self.at:
            self.action()


def stop_at(step: int, number: int = signal.SIGINT) -> At:
    """Return a reporter that sends this process a signal after a step."""
    return At(step, lambda: signal.raise_signal(number))


def log(output: Path, *keys: str) -> list[dict[str, Any]]:
    """Return the lines of a run's log that have all of the keys, without what depends on the clock."""
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    clock = ("tokens_per_second", "memory_bytes")
    return [{k: v for k, v in line.items() if k not in clock} for line in lines if all(key in line for key in keys)]


def losses(output: Path) -> list[float]:
    """Return the loss of each optimizer step."""
    return [line["loss"] for line in log(output, "loss")]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors model."""
    return load_file(folder / "model.safetensors")


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def relative(a: float, b: float) -> float:
    """Return the difference of two numbers relative to the larger one."""
    return abs(a - b) / max(abs(a), abs(b))


def far(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> float:
    """Return the largest difference between tensors of one name, relative to the largest value in them."""
    assert a.keys() == b.keys()
    return max(((a[k] - b[k]).abs().max() / b[k].abs().max()).item() for k in a)
