"""Checkpoints under faults, at full counts: cases and failures of each.

Usage: faults.py [--rows A1,A3,...] [--seed N] [--share S]

A tiny model is trained for 12 steps with a save after every second one; the checks are those of
tests/core/test_checkpoint.py. A run passes if it goes on by --resume auto, loses no more than the steps since the last
save and the one in flight, ends with the weights, the optimizer and the log of an uninterrupted run, bit for bit, and
leaves nothing half written.

- A1, anywhere: kill -9 at 100 moments, uniform over the time of a run, its start included
- A1, in a save: kill -9 at 100 places of saving: at each change of a file, and amid each file
- A1, beside: the same of checkpoints that are completed while the training goes on; they may also lose what was done
  meanwhile, which is less than the steps between two saves
- A1, divided: kill -9 of one of two processes of FSDP2 at 20 places of saving
- A2: stopped after each of 19 steps; full, LoRA with dropout, freeze and LISA; one pass a step and several
- A3: 20 runs of 120 steps, each killed ten times
- A4: a tmpfs that is full after 50 numbers of bytes; needs root
- A8: 50 signals at random moments
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
sys.path += [str(Path(__file__).parents[1] / "tests" / part) for part in ("core", ".")]

from lmf import LmfError
from lmf.errors import Interrupted
from lmf.runs import step_of
from lmf.testing import tiny_checkpoint
from lmf.training import checkpoint, loop
from rows import measured
from test_checkpoint import mount
from tinyrun import At, cut_at, ended, fork, kill_at, log, processes, run, same, stop_at, talks

EVERY = 2  # steps between two saves
SETTINGS = {"steps": 12, "batch_size": 4, "save_every": EVERY, "keep": 1}
FILES = ("model.", "optimizer.", "random.")
METHODS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"dropout": 0.1},
    "freeze": {"last_layers": 1},
    "lisa": {"interval": 3, "active_layers": 1},
}


class Bench:
    """A folder with a model, data, and runs that nothing happened to."""

    def __init__(self, folder: Path, seed: int, share: float):
        self.folder, self.share, self.dice = folder, share, random.Random(seed)
        self.model = tiny_checkpoint(folder / "model")
        self.data = talks(folder / "talks.jsonl", 12)
        self.numbers = itertools.count()
        begin = time.perf_counter()
        self.straight = self.run(folder / "straight", **SETTINGS)
        self.seconds = time.perf_counter() - begin

    def run(self, output: Path, *args: Any, **settings: Any) -> Path:
        return run(self.model, self.data, output, *args, **settings)

    def new(self) -> Path:
        """Return a new output folder."""
        return self.folder / f"out{next(self.numbers)}"

    def count(self, whole: int) -> range:
        return range(max(1, round(whole * self.share)))

    def goes_on(self, output: Path, most: int = EVERY + 1) -> str:
        """Continue a run in a process of its own; it may have lost so many steps. Return what is wrong, or nothing."""
        done = steps_done(output)
        folder, _ = checkpoint.find(output)
        saved = step_of(folder) if folder else 0
        fault = f"step {done} was done, but only {saved} saved" if done - saved > most else ""
        code = ended(fork(lambda: self.run(output, resume="auto", **SETTINGS)))
        fault = fault or (f"--resume auto ends with {code}" if code else self.differs(output))
        shutil.rmtree(output)
        return f"{output.name}: {fault}" if fault else ""

    def differs(self, output: Path, straight: Path | None = None) -> str:
        if not same(straight or self.straight, output):
            return "the run differs from an uninterrupted one"
        left = [str(path) for path in output.rglob(".*")]
        return f"left behind: {', '.join(left)}" if left else ""


def anywhere(bench: Bench) -> Iterator[str]:
    for _ in bench.count(100):
        output = bench.new()
        pid = fork(lambda output=output: bench.run(output, **SETTINGS))
        time.sleep(bench.dice.uniform(0, bench.seconds))
        os.kill(pid, signal.SIGKILL)
        ended(pid)
        yield bench.goes_on(output)


def places(begin: str) -> list[Callable[[Path], None]]:
    """Return what kills this process at each place of a save, and of what comes after it."""
    changes = [partial(_at, number, begin) for number in range(1, 63)]
    amid = [partial(_amid, f"{begin}/{file}", share / 13) for file in FILES for share in range(13)]
    return [*changes, *amid]


def _at(number: int, begin: str, output: Path) -> None:
    kill_at(number, output, begin)


def _amid(place: str, share: float, output: Path) -> None:
    cut_at(place, share)


def in_a_save(bench: Bench, large: int = loop.LARGE, most: int = EVERY + 1) -> Iterator[str]:
    found = places(".step-000010.partial")
    for number in bench.count(100):
        output, kill = bench.new(), found[number % len(found)]

        def killed(output: Path = output, kill: Callable[[Path], None] = kill) -> None:
            loop.LARGE = large
            kill(output)
            bench.run(output, **SETTINGS)

        code = ended(fork(killed))
        yield bench.goes_on(output, most) if code == -signal.SIGKILL else f"place {number} was not reached ({code})"


def beside(bench: Bench) -> Iterator[str]:
    yield from in_a_save(bench, large=0, most=2 * EVERY)


def divided(bench: Bench) -> Iterator[str]:
    settings = {**SETTINGS, "steps": 6, "parallel": "fsdp"}
    straight = bench.new()
    assert processes(2, lambda rank: bench.run(straight, **settings)) == [0, 0]
    found = places(".step-000004.partial")
    for number in bench.count(20):
        output, victim = bench.new(), number % 2
        # process 1 writes its part of the optimizer and nothing else
        kill = partial(_amid, "step-000004.partial/optimizer-1", number / 20) if victim else found[number * 3]

        def work(rank: int, output: Path = output, victim: int = victim, kill: Callable[[Path], None] = kill) -> None:
            if rank == victim:
                kill(output)
            with contextlib.suppress(LmfError):
                bench.run(output, **settings)

        codes = processes(2, work)
        if codes[victim] != -signal.SIGKILL:
            yield f"place {number} was not reached ({codes})"
            continue
        codes = processes(2, lambda rank, output=output: bench.run(output, resume="auto", **settings))
        yield f"place {number}: --resume auto ends with {codes}" if any(codes) else bench.differs(output, straight)


def splits(bench: Bench) -> Iterator[str]:
    for (method, options), tokens in itertools.product(METHODS.items(), (4096, 60)):
        settings = {"steps": 20, "batch_size": 4, "micro_batch_tokens": tokens, "options": options}
        straight = bench.run(bench.new(), method, **settings)
        for step in [step + 1 for step in bench.count(19)]:
            output = bench.new()
            with contextlib.suppress(Interrupted):
                bench.run(output, method, report=stop_at(step), **settings)
            bench.run(output, method, resume="newest", **settings)
            yield "" if same(straight, output) else f"{method}, {tokens} tokens, step {step}: another result"
            shutil.rmtree(output)


def chains(bench: Bench) -> Iterator[str]:
    settings = {**SETTINGS, "steps": 120}
    straight = bench.run(bench.new(), **settings)
    for _ in bench.count(20):
        output = bench.new()
        for _ in range(10):
            killed_at_step(bench, output, steps_done(output) + bench.dice.randint(1, 10), **settings)
        code = ended(fork(lambda output=output: bench.run(output, **{**settings, "resume": "auto"})))
        yield f"{output.name}: ends with {code}" if code else bench.differs(output, straight)
        shutil.rmtree(output)


def steps_done(output: Path) -> int:
    lines = log(output, "loss") if (output / "log.jsonl").exists() else []
    return lines[-1]["step"] if lines else 0


def killed_at_step(bench: Bench, output: Path, step: int, **settings: Any) -> None:
    """Start a run, or go on with it, and kill it as soon as it has done so many steps, or a little later."""
    pid = fork(lambda: bench.run(output, **{**settings, "resume": "auto"}))
    while steps_done(output) < step:
        time.sleep(0.002)
    time.sleep(bench.dice.uniform(0, 0.03))
    os.kill(pid, signal.SIGKILL)
    assert ended(pid) == -signal.SIGKILL


def full_disk(bench: Bench) -> Iterator[str]:
    size = sum(path.stat().st_size for path in bench.straight.rglob("*") if path.is_file())
    place = bench.folder / "small"
    place.mkdir()
    for number in bench.count(50):
        if subprocess.run(mount(f"size={4 * size}", place), capture_output=True).returncode:
            yield "no tmpfs can be mounted here"
            return
        try:
            yield _filled(bench, place, round(size * number / 50))
        finally:
            subprocess.run(["umount", str(place)], check=True)


def _filled(bench: Bench, place: Path, left: int) -> str:
    output, ballast = place / "out", place / "ballast"

    def fill() -> None:
        ballast.write_bytes(bytes(max(0, shutil.disk_usage(place).free - left)))

    try:
        bench.run(output, report=At(5, fill), **SETTINGS)
        ballast.unlink()
        return bench.differs(output)  # what was left was enough
    except LmfError as error:
        text = str(error)
    if "could not be written: the disk is full (" not in text or str(place) not in text:
        return f"{left} bytes left: {text}"
    whole = checkpoint.find(output)
    if whole[0] is None or whole[1]:
        return f"{left} bytes left: no whole checkpoint, or a damaged one under its final name: {whole}"
    ballast.unlink()
    return bench.goes_on(output)


def signals(bench: Bench) -> Iterator[str]:
    for number in bench.count(50):
        sent = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)[number % 3]
        output = bench.new()
        pid = fork(lambda output=output: _told(bench, output))
        time.sleep(bench.dice.uniform(0.3, 1) * bench.seconds)
        os.kill(pid, sent)
        begin = time.monotonic()
        code = ended(pid)
        seconds = time.monotonic() - begin
        if code not in (0, 128 + sent, -sent) or seconds > 10:
            yield f"{sent.name}: ends with {code} after {seconds:.1f} s"
        else:
            yield bench.goes_on(output)


def _told(bench: Bench, output: Path) -> None:
    try:
        bench.run(output, **SETTINGS)
    except Interrupted as error:
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


ROWS: Mapping[str, Callable[[Bench], Iterator[str]]] = {
    "A1, anywhere": anywhere,
    "A1, in a save": in_a_save,
    "A1, beside": beside,
    "A1, divided": divided,
    "A2": splits,
    "A3": chains,
    "A4": full_disk,
    "A8": signals,
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Cases and failures of checkpoints under faults.")
    parser.add_argument("--rows", help="rows to check, separated by commas; all by default")
    parser.add_argument("--seed", type=int, default=0, help="decides what is random (0)")
    parser.add_argument("--share", type=float, default=1.0, help="share of the cases of each row (1.0)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.seed, options.share)
        checks = {name: partial(check, bench) for name, check in ROWS.items()}
        return measured(checks, options.rows, options.seed, ("torch", "transformers", "safetensors"))


if __name__ == "__main__":
    sys.exit(main())
