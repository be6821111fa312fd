"""Commands that the page starts, and the flags that its boxes stand for."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
import typing
from pathlib import Path
from typing import Any

import pytest
from lmf import RunSettings
from lmf.runs import read_log, read_run
from lmf_serve.page.forms import Box, bare
from lmf_serve.page.jobs import LMF, Jobs
from lmf_serve.page.models import known
from lmf_serve.page.train import positional
from tinyrun import PLUGINS, talks

pytestmark = pytest.mark.timeout(200)


@pytest.fixture
def work(tiny, tmp_path, monkeypatch) -> list[str]:
    """A run that goes on for long, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    talks(tmp_path / "talks.jsonl", 12)
    return [
        "train",
        "full",
        "--model",
        str(tiny),
        "--data",
        "talks.jsonl",
        "--template",
        "chatml",
        "--steps",
        "1000000",
    ]


def wait_for(found, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_run_is_stopped_once_and_saves(work):
    jobs = Jobs()
    job = jobs.start(work)
    wait_for(lambda: read_log(Path("out")))
    for _ in range(3):
        job.stop()
    jobs.close()
    assert job.code == 130
    assert read_run(Path("out"))["status"] == "interrupted"
    assert list(Path("out").glob("checkpoints/step-*"))
    assert not job.running
    assert "--resume" in job.said


PAGE = """
import sys
from lmf_serve.page import run
from lmf_serve.page.jobs import Jobs

class Begun(Jobs):
    def __init__(self):
        super().__init__()
        self.start(sys.argv[1:])

run.Jobs = Begun
from lmf_serve.command import listening
from lmf import Plugins
run.run(Plugins(), None, True, listening("127.0.0.1", 0))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_run_ends_with_the_page_and_saves(number, work):
    page = subprocess.Popen([sys.executable, "-c", PAGE, *work], stdout=subprocess.PIPE, text=True)
    wait_for(lambda: read_log(Path("out")))
    assert page.stdout and re.search("the page is at http", page.stdout.readline())
    page.send_signal(number)
    page.communicate(timeout=60)
    assert read_run(Path("out"))["status"] == "interrupted"
    assert list(Path("out").glob("checkpoints/step-*"))


def test_nothing_is_imported_from_the_folder_of_the_data(tmp_path):
    (tmp_path / "random.py").write_text("raise SystemExit('imported')")
    done = subprocess.run([*LMF, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "given", "flags"),
    [
        ("system", "You are a pirate.", ["--system", "You are a pirate."]),
        ("system", "Don't lie.\nBe brief.", ["--system", "Don't lie.", "--system", "Be brief."]),
        ("data", ["a file.jsonl", "b"], ["--data", "a file.jsonl", "--data", "b"]),
        ("epochs", "2", ["--epochs", "2"]),
        ("epochs", "1.0", []),
        ("epochs", "", []),
        ("dedup", True, ["--dedup"]),
        ("save_best", False, ["--no-save-best"]),
        ("schedule", "linear", ["--schedule", "linear"]),
        ("schedule", "cosine", []),
    ],
)
def test_boxes_stand_for_flags(name, given, flags):
    field = next(f for f in dataclasses.fields(RunSettings) if f.name == name)
    shown: Any = None  # Gradio leaves loops of asyncio open, which other tests then find
    assert Box(name, bare(typing.get_type_hints(RunSettings)[name]), field.default, shown).flags(given) == flags


def test_what_begins_with_a_dash_is_no_flag():
    assert positional("-new", "out") == ["--", "-new", "out"]
    assert positional("model", "out") == ["model", "out"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_passed_over(tmp_path, monkeypatch):
    (tmp_path / "private").mkdir(mode=0)
    monkeypatch.chdir(tmp_path)
    assert "smollm2-135m" in known(PLUGINS)
