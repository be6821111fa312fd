"""Runs that lack memory say what took it and what helps; micro-batches of the largest size that fits."""

import dataclasses
import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from lmf import LmfError
from lmf.memory import machine
from lmf.memory.forecast import forecast, most_work
from lmf.memory.largest import MARGIN, of_each, sized
from lmf.memory.ledger import Usage
from lmf.parallel.processes import ALONE, Processes
from lmf.report import Reporter
from tinyrun import At, Notes, apart, ended, fork, plan, processes, run, same, talks

SETTINGS = {"steps": 4, "batch_size": 6, "save_every": 2, "learning_rate": 2e-5}
CUDA = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.10 GiB."
MAIN = "DefaultCPUAllocator: not enough memory: you tried to allocate 4294967296 bytes."


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talks(tmp_path_factory.mktemp("data") / "talks.jsonl", 12, turns=6)


def short(step: int, error: Exception) -> At:
    """Return a reporter with which memory is short after a step."""

    def fail() -> None:
        raise error

    return At(step, fail)


# Out of memory


def test_main_memory_that_is_really_short_is_told_with_what_helps(tiny, data, tmp_path):
    """The process may have 256 MB more than it has when the first step begins; the first pass needs more."""

    class Limited(Notes):
        def start(self, done: int, steps: int) -> None:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**28,) * 2)

    many = talks(tmp_path / "many.jsonl", 400, turns=8)

    def work() -> None:
        with pytest.raises(LmfError) as refused:
            run(tiny, many, tmp_path / "out", batch_size=300, micro_batch_tokens=30_000, report=Limited())
        (tmp_path / "told").write_text(str(refused.value))

    assert ended(fork(work)) == 0
    first, second, third, *rest = (tmp_path / "told").read_text().splitlines()
    assert first.startswith("Out of memory after step 0 of 2: ") and " more were asked for, " in first
    assert second.startswith("A micro-batch of 30,000 tokens takes up to ") and "(forecast): activations " in second
    assert third == "What needs less:"
    assert {"--gradient-checkpointing", "--micro-batch-tokens"} <= {line.split()[0] for line in rest}
    assert rest[-1] == "There is no checkpoint."
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (torch.OutOfMemoryError(CUDA), "2.50 GiB more were asked for"),
        (MemoryError(), "more was asked for than there is"),
        (RuntimeError(MAIN), "4.00 GiB more"),
    ],
)
def test_a_lack_of_memory_leaves_the_checkpoint_and_says_how_to_go_on(error, asked, tiny, data, tmp_path):
    with pytest.raises(LmfError) as refused:
        run(tiny, data, tmp_path, report=short(3, error), **SETTINGS)
    lines = str(refused.value).splitlines()
    assert lines[0].startswith(f"Out of memory after step 3 of 4: {asked}")
    assert lines[-1] == (
        f"The newest whole checkpoint is {tmp_path}/checkpoints/step-000002. "
        f"Continue: lmf train --config {tmp_path}/run.toml --resume"
    )
    report = Notes()
    run(tiny, data, tmp_path, resume="newest", report=report, **SETTINGS, micro_batch_tokens=200)
    assert "--micro-batch-tokens then: 4096; now: 200. The numbers may differ a little" in report.notes


def test_each_change_has_the_share_that_its_own_forecast_has(tiny, data, tmp_path):
    settings = {"max_tokens": 512, "micro_batch_tokens": 512, "batch_size": 6}
    with pytest.raises(LmfError) as refused:
        run(tiny, data, tmp_path / "out", report=short(1, MemoryError()), **settings)
    lines = {line.split("  ")[1]: line for line in str(refused.value).splitlines() if line.startswith("  ")}
    assert lines["--gradient-checkpointing"].endswith("% of it") and lines["lora"].endswith("% of it, in a new run")
    made = plan(tiny, data, tmp_path / "new", **settings)
    whole = forecast(made, ALONE.device, most_work(made)).usage.total
    for flags, change in {
        "--max-tokens 256 --micro-batch-tokens 256": {"max_tokens": 256, "micro_batch_tokens": 256},
        "--gradient-checkpointing": {"gradient_checkpointing": True},
    }.items():
        other = dataclasses.replace(made, settings=dataclasses.replace(made.settings, **change))
        need = forecast(other, ALONE.device, most_work(other)).usage.total
        assert f" {need / whole:.0%} of it" in lines[flags]


def test_another_error_is_not_taken_for_a_lack_of_memory(tiny, data, tmp_path):
    with pytest.raises(RuntimeError, match=r"^the size of tensor a"):
        run(tiny, data, tmp_path / "out", report=short(1, RuntimeError("the size of tensor a")), **SETTINGS)


def test_copies_in_several_processes_are_told_of_their_division(tiny, data, tmp_path):
    def work(rank: int) -> None:
        report = short(1, MemoryError()) if rank == 0 else Notes()
        with pytest.raises(LmfError) as refused:
            run(tiny, data, tmp_path / "out", report=report, timeout=20, **SETTINGS)
        (tmp_path / str(rank)).write_text(str(refused.value))

    assert processes(2, work) == [0, 0]
    told = (tmp_path / "0").read_text()
    assert "Divided among the 2 processes by --parallel fsdp, each of them needs " in told
    assert (tmp_path / "1").read_text().startswith("Another process of the run has ended")


# --micro-batch-tokens auto


def auto(made: Any, room: int, monkeypatch: pytest.MonkeyPatch, among: Processes = ALONE) -> int:
    monkeypatch.setattr(machine, "free", lambda device: round(room / MARGIN))
    return sized(made, Reporter(), among).settings.micro_batch_tokens


def test_the_size_is_the_largest_that_fits(tiny, data, tmp_path, monkeypatch):
    made = plan(tiny, data, tmp_path, micro_batch_tokens="auto", batch_size=40, max_tokens=100)

    def need(tokens: int) -> int:
        other = dataclasses.replace(made, settings=dataclasses.replace(made.settings, micro_batch_tokens=tokens))
        return forecast(other, ALONE.device, most_work(other)).usage.total

    for tokens in (300, 1000, 2500):
        found = auto(made, need(tokens), monkeypatch)
        assert tokens * 0.85 < found <= tokens + 64  # sums are rounded up to blocks
        assert need(found) <= need(tokens) * 1.01
    assert auto(made, 10**12, monkeypatch) == 40 * 100  # a whole step
    assert auto(made, 1, monkeypatch) == 100  # no example is cut


def test_what_is_divided_leaves_room(tiny, data, tmp_path, monkeypatch):
    usage = Usage(weights=100, gradients=80, state=60, activations=7)
    each = [of_each(usage, way, 2).total for way in ("ddp", "fsdp", "zero1", "zero2", "zero3")]
    assert each == [247 + 80, 127, 217, 177, 127]  # DDP has its gradients in buckets a second time
    assert of_each(usage, "ddp", 1) == usage
    made = plan(tiny, data, tmp_path, micro_batch_tokens="auto", batch_size=40, max_tokens=100, epochs=3.0)
    apart = dataclasses.replace(made, sharing=dataclasses.replace(made.sharing, way="fsdp"))
    room = 3 * 2**22
    alone = auto(made, room, monkeypatch)
    monkeypatch.setattr(Processes, "each", lambda self, work: work())
    monkeypatch.setattr(Processes, "gather", lambda self, value: [value])
    assert auto(apart, room, monkeypatch, Processes(0, 2)) > alone
    monkeypatch.setattr(Processes, "gather", lambda self, value: [value, (512, 1, 2)])
    assert auto(apart, room, monkeypatch, Processes(0, 2)) == 512  # all have the size of the smallest


def test_the_size_does_not_change_the_result_and_is_kept(tiny, data, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "free", lambda device: 3 * 2**22)
    report = Notes()
    found = run(tiny, data, tmp_path / "auto", micro_batch_tokens="auto", report=report, **SETTINGS)
    (note,) = [each for each in report.notes if each.startswith("--micro-batch-tokens auto: ")]
    size = json.loads((found / "lmf.json").read_text())["settings"]["micro_batch_tokens"]
    assert size < 600  # of 972 in a step
    assert note.startswith(f"--micro-batch-tokens auto: {size:,}; forecast ")
    assert f"micro_batch_tokens = {size}\n" in (found / "run.toml").read_text()
    for other in (100, 4096):
        assert (
            max(apart(found, run(tiny, data, tmp_path / str(other), micro_batch_tokens=other, **SETTINGS)).values())
            < 1e-5
        )
    monkeypatch.setattr(machine, "free", lambda device: 2**40)
    (found / "checkpoints/step-000004/manifest.json").unlink()
    run(tiny, data, found, resume="newest", micro_batch_tokens="auto", **SETTINGS)
    assert same(run(tiny, data, tmp_path / "straight", micro_batch_tokens=size, **SETTINGS), found)
