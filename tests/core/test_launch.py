"""``lmf launch``: processes on one machine and on two, those that die or hang, and options that contradict."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lmf import ConfigError
from lmf.parallel.choice import sharing_of, started_by
from lmf.parallel.launch import Launch, check_launch
from lmf.runs import resume_command
from lmf.settings import RunSettings
from tinyrun import apart, run, talks

TRAIN = ["train", "full", "--template", "chatml", "--dtype", "float32", "--learning-rate", "1e-3"]
STEPS = 150  # enough to be interrupted
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talks(tmp_path_factory.mktemp("data") / "talks.jsonl", 20)


class Started:
    """``lmf launch`` in a process of its own."""

    def __init__(self, launch: list[str], command: list[str], text: Path, *before: str):
        self.text = text
        line = [*before, sys.executable, "-m", "lmf_cli", "launch", *launch, "--", *command]
        with text.open("w") as out:
            self.process = subprocess.Popen(line, stdout=out, stderr=subprocess.STDOUT, env=ENVIRONMENT)

    def ends(self, seconds: float = 90) -> tuple[int, str]:
        """Wait for the end. Returns the exit code and all that was written."""
        try:
            code, text = self.process.wait(seconds), self.text.read_text()
            assert "Traceback" not in text, text
            return code, text
        finally:
            self.process.kill()

    def workers(self) -> list[int]:
        """Return the processes that it has started."""
        found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True, text=True)
        return [int(pid) for pid in found.stdout.split()]


def until(output: Path, step: int) -> None:
    """Wait until a run has done so many steps."""
    end = time.monotonic() + 60
    while not (output / "log.jsonl").exists() or len((output / "log.jsonl").read_text().splitlines()) < step:
        assert time.monotonic() < end, "the run did not start"
        time.sleep(0.05)


def arguments(tiny: Path, data: Path, output: Path, *more: str) -> list[str]:
    return [*TRAIN, "--model", str(tiny), "--data", str(data), "--output", str(output), *more]


def test_two_processes_are_started_and_do_what_one_does(tiny, data, tmp_path):
    line = arguments(tiny, data, tmp_path / "two", "--steps", "4", "--parallel", "fsdp")
    code, text = Started(["--devices", "2"], line, tmp_path / "text").ends()
    assert code == 0, text
    assert text.count("lmf train full: loading") == 1  # one process speaks
    record = json.loads((tmp_path / "two/lmf.json").read_text())
    assert (record["processes"], record["parallel"], record["started_by"]) == (2, "fsdp", "lmf launch")
    assert max(apart(run(tiny, data, tmp_path / "one", steps=4), tmp_path / "two").values()) <= 1e-5


def test_an_error_of_the_run_is_told_once(tiny, tmp_path):
    line = arguments(tiny, tmp_path / "no such file", tmp_path / "out")
    code, text = Started(["--devices", "2"], line, tmp_path / "text").ends()
    assert code == 4 and text.count("error: No file, folder or data set is called") == 1, text


def test_a_process_that_is_killed_ends_the_run_with_its_last_word(tiny, data, tmp_path):
    line = arguments(tiny, data, tmp_path / "out", "--steps", "5000", "--save-every", "2")
    launched = Started(["--devices", "2"], line, tmp_path / "text")
    until(tmp_path / "out", 4)
    os.kill(launched.workers()[1], signal.SIGKILL)
    began = time.monotonic()
    code, text = launched.ends()
    assert code == 1 and time.monotonic() - began < 40
    assert re.search(r"error: Process 1 \(pid \d+\) was killed by SIGKILL; its last word: \S+ .*, \d+ s ago", text), (
        text
    )
    assert re.search(r"The newest whole checkpoint is .*/step-\d+\. Continue: lmf launch --devices 2 -- train", text)


def test_a_process_that_hangs_ends_the_run_in_time(tiny, data, tmp_path):
    line = arguments(tiny, data, tmp_path / "out", "--steps", "5000", "--timeout", "3")
    launched = Started(["--devices", "2"], line, tmp_path / "text")
    until(tmp_path / "out", 3)
    hangs = launched.workers()[1]
    os.kill(hangs, signal.SIGSTOP)
    end = time.monotonic() + 20
    while "error: Another process of the run has ended, or has not answered for 3 s" not in launched.text.read_text():
        assert time.monotonic() < end, "the other process waits on"
        time.sleep(0.1)
    os.kill(hangs, signal.SIGKILL)  # torch's launcher would do so after 30 s
    code, text = launched.ends()
    assert code == 1
    assert re.search(r"Process 1 .* its last word: .*step \d+, \d+ s ago", text), text


def test_a_signal_to_the_launcher_saves_the_run(tiny, data, tmp_path):
    line = arguments(tiny, data, tmp_path / "out", "--steps", "5000")
    launched = Started(["--devices", "2"], line, tmp_path / "text")
    until(tmp_path / "out", 3)
    launched.process.send_signal(signal.SIGTERM)
    code, text = launched.ends(30)
    assert code == 143
    told = re.search(
        r"error: Stopped after step (\d+) of 5000; saved (\S+)\.\nContinue: lmf launch --devices 2 --", text
    )
    assert told and Path(told[2]).is_dir(), text


def test_processes_that_died_are_started_again_and_go_on(tiny, data, tmp_path):
    line = arguments(tiny, data, tmp_path / "out", "--steps", str(STEPS), "--save-every", "2")
    launched = Started(["--devices", "2", "--restarts", "1"], line, tmp_path / "text")
    until(tmp_path / "out", 4)
    os.kill(launched.workers()[1], signal.SIGKILL)
    code, text = launched.ends()
    assert code == 0, text
    assert re.search(r"resumed from step-\d+", text)
    assert apart(run(tiny, data, tmp_path / "one", steps=STEPS), tmp_path / "out")["weights"] <= 1e-4


# Two machines


@pytest.fixture
def machines() -> Iterator[list[list[str]]]:
    """Two network namespaces that reach one another; what to write before a command to run it in each."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need root and the program ip (iproute2)")
    names = [f"lmf-{os.getpid()}-{letter}" for letter in "ab"]
    ends = [f"l{os.getpid() % 10**6}{letter}" for letter in "ab"]
    lines = [f"ip netns add {name}" for name in names]
    lines.append(f"ip link add {ends[0]} netns {names[0]} type veth peer name {ends[1]} netns {names[1]}")
    for number, (name, end) in enumerate(zip(names, ends, strict=True), 1):
        inside = f"ip netns exec {name} ip"
        lines += [f"{inside} link set lo up", f"{inside} addr add 10.77.0.{number}/24 dev {end}"]
        lines.append(f"{inside} link set {end} up")
    try:
        for line in lines:
            done = subprocess.run(line.split(), capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"no network namespaces here: {done.stderr.strip()}")
        yield [["ip", "netns", "exec", name] for name in names]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def across(rank: int) -> list[str]:
    return ["--devices", "1", "--nodes", "2", "--node-rank", str(rank), "--rendezvous", "10.77.0.1:29511"]


def test_two_machines_train_and_go_on_after_one_was_lost(machines, tiny, data, tmp_path):
    out = tmp_path / "out"
    line = arguments(tiny, data, out, "--steps", str(STEPS), "--save-every", "2", "--timeout", "4")
    both = [Started(across(rank), line, tmp_path / f"{rank}", *machines[rank]) for rank in (0, 1)]
    until(out, 4)
    lost = subprocess.run(["ip", "netns", "pids", machines[1][3]], capture_output=True, text=True).stdout.split()
    for pid in lost:  # it falls silent at once, as a machine without power
        os.kill(int(pid), signal.SIGSTOP)
    code, text = both[0].ends()
    for pid in lost:
        os.kill(int(pid), signal.SIGKILL)
    both[1].process.wait()
    assert code == 1
    assert re.search(
        r"Another process of the run .* 4 s, after step \d+ of 150: .*\nThe newest whole checkpoint is", text
    )
    again = ["train", "--config", str(out / "run.toml"), "--resume"]
    both = [Started(across(rank), again, tmp_path / f"{rank}", *machines[rank]) for rank in (0, 1)]
    codes, texts = zip(*(each.ends() for each in both), strict=True)
    assert codes == (0, 0), texts
    assert "resumed from step-" in texts[0]
    assert apart(run(tiny, data, tmp_path / "one", steps=STEPS), out)["weights"] <= 1e-4


def test_nobody_at_the_rendezvous_is_told_in_time(tiny, data, tmp_path):
    line = arguments(tiny, data, tmp_path / "out")
    where = ["--nodes", "2", "--rendezvous", "127.0.0.1:29519", "--wait", "2"]
    away = Started([*where, "--node-rank", "1"], line, tmp_path / "1").ends(60)
    assert away[0] == 1 and "Nobody answers at 127.0.0.1:29519 after 2 s" in away[1]
    lonely = Started([*where, "--node-rank", "0"], line, tmp_path / "0").ends(60)
    assert lonely[0] == 1 and "Only a part of the 2 machines came to 127.0.0.1:29519 within 2 s" in lonely[1]
    assert not (tmp_path / "out").exists()


# Without starting anything


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"nodes": 2}, "--nodes 2 needs --rendezvous HOST:PORT"),
        ({"nodes": 2, "node_rank": 2, "rendezvous": "a:1"}, "--node-rank 2: with --nodes 2, they are numbered from 0"),
        ({"nodes": 2, "rendezvous": "10.0.0.1"}, "--rendezvous 10.0.0.1 is no address; write HOST:PORT"),
        ({"nodes": 2, "rendezvous": "a:99999"}, "--rendezvous a:99999 is no address"),
        ({"rendezvous": "a:1"}, "--rendezvous is for several machines; give --nodes, too"),
    ],
)
def test_options_that_contradict_are_refused(given, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        check_launch(["train"], Launch(**given))


def test_a_launch_without_a_command_says_what_to_write():
    with pytest.raises(ConfigError, match=r"^lmf launch needs the command to run: lmf launch --devices 2 -- train"):
        check_launch([], Launch())


def test_what_other_launchers_were_told_is_done():
    settings = RunSettings(model="m", data=("d",))
    for environ, way, offload in (
        ({}, "ddp", None),
        ({"ACCELERATE_USE_FSDP": "true"}, "fsdp", None),
        ({"ACCELERATE_USE_FSDP": "1", "FSDP_OFFLOAD_PARAMS": "true"}, "fsdp", "cpu"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "zero3", None),
    ):
        found = sharing_of(settings, environ)
        assert (found.way, found.offload) == (way, offload)
    asked = RunSettings(model="m", data=("d",), parallel="zero1")
    assert sharing_of(asked, {"ACCELERATE_USE_FSDP": "1"}).way == "zero1"


def test_the_record_says_what_started_the_processes():
    torchrun = {"TORCHELASTIC_RUN_ID": "x"}
    environments = ({}, torchrun, torchrun | {"_LMF_LAUNCH": "x"})
    assert [started_by(environ) for environ in environments] == ["lmf", "torchrun", "lmf launch"]


def test_a_run_is_continued_as_it_was_launched(monkeypatch):
    monkeypatch.setenv("_LMF_LAUNCH", "lmf launch --devices 2 --")
    assert resume_command("train", Path("out")) == "lmf launch --devices 2 -- train --config out/run.toml --resume"
