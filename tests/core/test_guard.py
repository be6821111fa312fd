"""One run in a folder, and signals that end a run between two steps."""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmf_cli
import pytest
from lmf import LmfError
from lmf.guard import SIGNALS, Stop, lock
from lmf.report import Reporter
from lmf.training import checkpoint
from tinyrun import At, ended, fork, log, losses, run, sha256, talks


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return talks(tmp_path_factory.mktemp("data") / "talks.jsonl", 12)


# One run in a folder


def test_a_held_folder_names_the_process_that_holds_it(tmp_path):
    with lock(tmp_path), pytest.raises(LmfError) as refused, lock(tmp_path):
        pass
    assert str(refused.value) == (
        f"{tmp_path} is in use by another run (process {os.getpid()}).\nWait for it, or choose another --output."
    )


def test_a_lock_ends_with_its_process_however_it_ends(tmp_path):
    reader, writer = os.pipe()

    def hold() -> None:
        with lock(tmp_path):
            os.write(writer, b"held")
            time.sleep(60)

    pid = fork(hold)
    assert os.read(reader, 4) == b"held"
    with pytest.raises(LmfError, match=rf"\(process {pid}\)"), lock(tmp_path):
        pass
    os.kill(pid, signal.SIGKILL)
    assert ended(pid) == -signal.SIGKILL
    with lock(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"


def test_a_lock_makes_its_folder_and_leaves_no_empty_one(tmp_path):
    folder = tmp_path / "new/out"
    with lock(folder):
        assert folder.is_dir()
    assert not folder.exists()
    with pytest.raises(ValueError, match="mine"), lock(folder):
        (folder / "kept").touch()
        raise ValueError("mine")
    assert [path.name for path in folder.iterdir()] == ["kept"]


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LmfError) as refused, lock(tmp_path / "file/out"):
        pass
    assert str(refused.value) == f"{tmp_path}/file/out cannot be made: Not a directory. Choose another --output."


def test_a_second_run_is_refused_and_the_first_is_unharmed(tiny, data, tmp_path):
    """The second one is planned while the first still loads its model, so only the lock can stop it."""
    output = tmp_path / "out"
    settings = {"steps": 4, "batch_size": 4}
    straight = run(tiny, data, tmp_path / "straight", **settings)
    failures: list[str] = []

    def second() -> None:
        for more in ({"resume": "newest"}, {"overwrite": True}):
            with pytest.raises(LmfError) as refused:
                run(tiny, data, output, **settings, **more)
            failures.append(str(refused.value))

    run(tiny, data, output, report=At(2, second), **settings)
    assert len(failures) == 2
    assert all(f"is in use by another run (process {os.getpid()})" in text for text in failures)
    assert log(output) == log(straight)
    assert sha256(output / "model.safetensors") == sha256(straight / "model.safetensors")
    assert not (output / ".lock").exists()


def test_a_run_that_came_and_went_while_the_model_was_loaded_is_not_overwritten(tiny, data, tmp_path):
    """Both runs found the folder free when they were planned."""

    class Race(Reporter):
        def note(self, text: str) -> None:
            if text.startswith("full: "):  # the model is loaded
                run(tiny, data, tmp_path / "out", steps=1, seed=7)

    with pytest.raises(LmfError, match="holds a run already"):
        run(tiny, data, tmp_path / "out", steps=1, seed=8, report=Race())
    assert json.loads((tmp_path / "out/lmf.json").read_text())["settings"]["seed"] == 7


@pytest.mark.parametrize("empty", [True, False], ids=["into an empty folder", "into a new folder"])
def test_a_run_that_fails_before_its_first_step_leaves_nothing_behind(empty, tiny, data, tmp_path):
    class Fails(Reporter):
        def start(self, done: int, steps: int) -> None:
            assert (tmp_path / "out/lmf.json").exists()
            raise RuntimeError("the terminal went away")

    if empty:
        (tmp_path / "out").mkdir()
    with pytest.raises(RuntimeError, match="went away"):
        run(tiny, data, tmp_path / "out", eval_split=0.2, steps=2, report=Fails())
    assert not (tmp_path / "out").exists()
    run(tiny, data, tmp_path / "out", steps=2)


# Signals


def test_the_first_signal_is_noted_and_the_second_ends_at_once():
    def twice() -> None:
        with Stop().listening() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop.signal == signal.SIGINT
            signal.raise_signal(signal.SIGTERM)
            raise AssertionError("the second signal was not obeyed")

    assert ended(fork(twice)) == -signal.SIGTERM


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in SIGNALS]
    with Stop().listening():
        assert all(signal.getsignal(number) not in before for number in SIGNALS)
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_signal_that_is_ignored_stays_ignored():
    """As ``nohup`` arranges it for SIGHUP, and a shell for SIGINT of what it starts in the background."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stop().listening() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.signal is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_outside_the_main_thread_there_is_nothing_to_listen_to():
    heard = []

    def listen() -> None:
        with Stop().listening() as stop:
            heard.append(stop.signal)

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert heard == [None]


# Signals to the command

SETTINGS = {"steps": 400, "batch_size": 4, "save_every": 1000}


def line(tiny: Path, data: Path, output: Path) -> list[str]:
    values = {"model": tiny, "data": data, "output": output, "template": "chatml", "dtype": "float32"} | SETTINGS
    flags = [text for key, value in values.items() for text in (f"--{key.replace('_', '-')}", str(value))]
    return ["train", "full", *flags, "--learning-rate", "1e-3"]


def start(arguments: list[str], text: Path, prepare: Callable[[], Any] = lambda: None) -> int:
    """Start the command in a copy of this process. What it prints goes into a file."""
    text.touch()

    def work() -> None:
        prepare()
        with text.open("w") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        sys.argv = ["lmf", *arguments]
        lmf_cli.main()

    return fork(work)


def wait(until: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.005)


def steps(output: Path) -> int:
    return len(losses(output)) if (output / "log.jsonl").exists() else 0


@pytest.fixture
def running(tiny, data, tmp_path) -> Iterator[Callable[..., int]]:
    """What starts the command and returns its process id after a number of steps."""
    started: list[int] = []

    def run_until(step: int) -> int:
        output = tmp_path / "out"
        started.append(start(line(tiny, data, output), tmp_path / "text"))
        wait(lambda: steps(output) >= step)
        return started[-1]

    yield run_until
    for pid in started:
        with contextlib.suppress(ChildProcessError):  # it has ended, as it should
            if os.waitpid(pid, os.WNOHANG) == (0, 0):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("attempt", range(2))
def test_a_signal_ends_the_command_with_a_whole_checkpoint(number, code, attempt, running, tmp_path):
    pid = running(random.Random(f"{number} {attempt}").randrange(1, 30))
    os.kill(pid, number)
    sent = time.monotonic()
    assert ended(pid) == code
    assert time.monotonic() - sent < 10
    text, output = (tmp_path / "text").read_text(), tmp_path / "out"
    last = steps(output)
    assert last < 400
    assert text.endswith(
        f"error: Stopped after step {last} of 400; saved {output}/checkpoints/step-{last:06d}.\n"
        f"Continue: lmf train --config {output}/run.toml --resume\n"
    )
    assert "Traceback" not in text
    folder, skipped = checkpoint.find(output)
    assert (folder, skipped) == (output / f"checkpoints/step-{last:06d}", [])
    assert json.loads((output / "lmf.json").read_text())["status"] == "interrupted"


def test_what_the_message_says_continues_the_run(running, tmp_path):
    pid = running(3)
    os.kill(pid, signal.SIGTERM)
    assert ended(pid) == 143
    text = (tmp_path / "text").read_text()
    command = re.search(r"^Continue: lmf (.*)$", text, re.M)
    assert command
    pid = start(command[1].split(), tmp_path / "again")
    wait(lambda: "resumed from step-" in (tmp_path / "again").read_text())
    os.kill(pid, signal.SIGKILL)
    assert ended(pid) == -signal.SIGKILL


def test_the_command_as_a_process_of_its_own_obeys_a_signal(tiny, data, tmp_path):
    output = tmp_path / "out"
    command = [sys.executable, "-m", "lmf_cli", *line(tiny, data, output)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        wait(lambda: steps(output) >= 2)
        process.send_signal(signal.SIGTERM)
        text, _ = process.communicate(timeout=30)
    assert process.returncode == 143
    assert f"Continue: lmf train --config {output}/run.toml --resume\n" in text
    assert "Traceback" not in text
    assert checkpoint.find(output)[0] == output / f"checkpoints/step-{steps(output):06d}"


def test_a_second_signal_ends_the_command_at_once(tiny, data, tmp_path):
    """It comes while the checkpoint is written; that one is left half written, and not taken for whole."""
    output = tmp_path / "out"

    def slow() -> None:
        write = checkpoint.write

        def write_slowly(*args: Any) -> Any:
            Path(args[0], "checkpoints/.step-000001.partial").mkdir(parents=True)
            time.sleep(60)
            return write(*args)

        checkpoint.write = write_slowly

    pid = start(line(tiny, data, output), tmp_path / "text", slow)
    wait(lambda: steps(output) >= 1)
    os.kill(pid, signal.SIGINT)
    wait((output / "checkpoints").exists)
    os.kill(pid, signal.SIGINT)
    sent = time.monotonic()
    assert ended(pid) == -signal.SIGINT
    assert time.monotonic() - sent < 10
    assert checkpoint.find(output) == (None, [])
