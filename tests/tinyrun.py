"""Runs of the tiny model, as the tests of the runtime need them: written in a line, done in a second."""

import hashlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from accelerate.state import AcceleratorState
from lmf import Plugins, RunSettings
from lmf.config import make
from lmf.errors import Interrupted
from lmf.plan import Plan, make_plan
from lmf.report import Reporter
from lmf.training.loop import train
from safetensors.torch import load_file
from transformers.utils import logging

logging.disable_progress_bar()

PLUGINS = Plugins()
SWITCHING = [  # methods and options: all of a model, and layers that change, with each fate of the state they leave
    ("full", {}),
    *(("lisa", {"interval": 2, "active_layers": 1, "state": state}) for state in ("reset", "park", "keep")),
]
WORDS = ["the", "user", "and", "assistant", "say", "hello", "what", "is", "one", "two", "three", "answer"]


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


def run_in_two(stop: int, *args: Any, **kwargs: Any) -> Path:
    """Do a run that is interrupted after a step, and then go on with it."""
    with pytest.raises(Interrupted):
        run(*args, report=stop_at(stop), **kwargs)
    return run(*args, resume="newest", **kwargs)


def log(output: Path, *keys: str) -> list[dict[str, Any]]:
    """Return the lines of a run's log that have all of the keys, without what depends on the clock."""
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    clock = ("tokens_per_second", "memory_bytes")
    return [{k: v for k, v in line.items() if k not in clock} for line in lines if all(key in line for key in keys)]


def losses(output: Path) -> list[float]:
    """Return the loss of each optimizer step."""
    return [line["loss"] for line in log(output, "loss")]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors model, or of an adapter."""
    (file,) = folder.glob("*model.safetensors")
    return load_file(file)


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def same(one: Path, other: Path) -> bool:
    """Tell whether two runs have logged the same and end with the same weights and optimizer, bit for bit."""
    newest = max((one / "checkpoints").iterdir(), key=lambda folder: folder.name)
    names = [file.relative_to(one) for file in [*one.glob("*.safetensors"), *newest.glob("optimizer*.safetensors")]]
    assert len(names) >= 2
    return log(one) == log(other) and all(sha256(one / name) == sha256(other / name) for name in names)


def relative(a: float, b: float) -> float:
    """Return the difference of two numbers relative to the larger one."""
    return abs(a - b) / max(abs(a), abs(b))


def far(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> float:
    """Return the largest difference between tensors of one name, as norms: ‖a − b‖ / ‖b‖."""
    assert a.keys() == b.keys()
    return max(((a[k] - b[k]).norm() / b[k].norm()).item() for k in a)


def apart(a: Path, b: Path) -> dict[str, float]:
    """Return how far two runs are apart: the largest relative differences of what they logged and gave out."""
    pairs = list(zip(log(a, "loss"), log(b, "loss"), strict=True))
    logged = {key: max(relative(x[key], y[key]) for x, y in pairs) for key in ("loss", "gradient_norm")}
    return logged | {"weights": far(weights(a), weights(b))}


def held(shared: Any) -> tuple[int, int]:
    """Return the bytes of a shared model that this process has: of the weights, and of the optimizer's state."""
    weights = [getattr(p, "ds_tensor", p) for p in shared.model.parameters()]
    base = getattr(shared, "_base", shared.optimizer)
    state = [v for each in base.state.values() for v in each.values() if isinstance(v, torch.Tensor) and v.ndim]
    own = [[t.to_local() if hasattr(t, "to_local") else t for t in tensors] for tensors in (weights, state)]
    sizes = [sum(t.numel() * t.element_size() for t in tensors) for tensors in own]
    return sizes[0], sizes[1]


def fork(work: Callable[[], Any]) -> int:
    """Start work in a copy of this process, which spares it the imports. Returns its process id."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        work()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(pid: int, seconds: float = 100) -> int:
    """Wait for a process. Returns its exit code, or the negative number of the signal that killed it."""
    end = time.monotonic() + seconds
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)  # it hangs
        time.sleep(0.005)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_at(number: int, output: Path, begin: str) -> None:
    """Kill this process at a change of a file in ``output``, counted from the first one that names ``begin``."""
    changes = {"os.rename", "os.remove", "os.mkdir", "os.rmdir"}
    seen = [0]

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if (event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")) or event in changes:
            path = str(args[0])
        else:
            return
        if path.startswith(str(output)) or "/" not in path:  # within a folder that is removed, a bare name
            seen[0] += bool(seen[0] or begin in path)
            if seen[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def cut_at(place: str, share: float) -> None:
    """Kill this process amid a file of tensors that has ``place`` in its path, when a share of it is written."""

    def save_file(tensors: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        if place not in str(path):
            saved(tensors, path, *args, **kwargs)
            return
        content = safetensors.torch.save(tensors, *args, **kwargs)
        Path(path).write_bytes(content[: int(len(content) * share)])
        os.kill(os.getpid(), signal.SIGKILL)

    import lmf.parallel.pieces
    import lmf.training.checkpoint
    import transformers.modeling_utils

    saved = safetensors.torch.save_file
    for module in (lmf.training.checkpoint, lmf.parallel.pieces):
        module.save_file = save_file  # type: ignore[attr-defined]
    transformers.modeling_utils.safe_save_file = save_file  # type: ignore[attr-defined]


def processes(count: int, work: Callable[[int], Any], seconds: float = 100) -> list[int]:
    """Do work in processes that know of each other, as ``accelerate launch`` starts them. Returns their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def start(rank: int) -> None:
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
        os.environ |= {name: str(number) for name, number in numbers.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true"}
        AcceleratorState._reset_state(reset_partial_state=True)
        work(rank)

    return [ended(pid, seconds) for pid in [fork(lambda rank=rank: start(rank)) for rank in range(count)]]
