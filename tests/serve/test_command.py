"""``lmf serve`` from its start to its end."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from lmf_serve.command import name_of
from terminal import lmf, lmf_without_torch


@pytest.fixture(scope="module")
def started(tiny, tmp_path_factory):
    """A server in a process of its own."""
    command = [sys.executable, "-m", "lmf_cli", "serve", str(tiny), "--template", "chatml", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    line = process.stdout.readline()
    found = re.fullmatch(r"tiny answers at (http://127\.0\.0\.1:\d+)/v1; Ctrl-C ends it\n", line)
    assert found, line + (process.stderr.read() if process.stderr else "")
    yield process, found[1]
    process.kill()


def test_a_server_answers_and_ends_in_time_when_it_is_told_to(started):
    process, url = started
    models = httpx.get(f"{url}/v1/models", timeout=30).json()["data"]
    assert [model["id"] for model in models] == ["tiny"]
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "stream": True, "n": 8}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json={**asked, "max_tokens": 450}, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        last = [line for line in lines if line][-1]
    assert process.wait(20) in (0, -signal.SIGTERM)
    assert time.monotonic() - began < 10
    assert last == "data: [DONE]" or json.loads(last.removeprefix("data: "))["error"]["code"] == "shutting_down"
    out, err = process.communicate()
    assert (out, err) == ("", "")


@pytest.mark.parametrize(
    ("line", "code", "told"),
    [
        ("nosuch", 1, "No model is called 'nosuch'."),
        ("./model --template chatlm", 1, "No template is called 'chatlm'."),
        ("./model --host 0.0.0.0", 2, "--host 0.0.0.0 lets others than this machine in. Give --api-key or LMF_API_KEY"),
        ("./model --api-key short", 2, "The API key must have at least 16 characters"),
        ("./model --port 70000", 2, "--port is 70000; it must be at most 65535."),
        ("./model --max-tokens 0", 2, "--max-tokens is 0; it must be at least 1."),
        ("./model --max-queue -1", 2, "--max-queue is -1; it must be at least 0."),
        ("./model --timeout 0", 2, "--timeout is 0.0; it must be greater than 0."),
        ("./model --hots 127.0.0.1", 2, "--hots"),
        ("./model --host no-such-host.invalid --allow-anyone", 1, "--host no-such-host.invalid is no address"),
    ],
)
def test_a_wrong_line_is_refused_before_torch_is_loaded(tiny, tmp_path, monkeypatch, line, code, told):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LMF_API_KEY", raising=False)
    Path("model").symlink_to(tiny)
    done = lmf_without_torch("serve", *line.split())
    assert done.code in (1, 2)
    assert told in done.err


def test_a_port_that_is_taken_is_told_before_the_model_is_loaded(tiny):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = lmf_without_torch("serve", str(tiny), "--port", str(port))
    assert done.code == 1
    assert f"--host 127.0.0.1 --port {port} cannot be used: Address already in use. Choose another --port." in done.err


def test_a_context_that_the_model_cannot_read_is_refused(tiny):
    done = lmf("serve", str(tiny), "--port", "0", "--context", "100000")
    assert done.code == 2
    assert "--context 100000 is more than the 512 tokens that the model can read." in done.err


def test_a_model_is_called_by_its_folder_file_or_name(tmp_path, monkeypatch):
    (tmp_path / "runs/mine").mkdir(parents=True)
    (tmp_path / "small.gguf").write_text("")
    monkeypatch.chdir(tmp_path / "runs/mine")
    assert name_of("..") == "runs"
    assert name_of("../mine/") == "mine"
    assert name_of(".") == "mine"
    assert name_of("../../small.gguf") == "small"
    assert name_of("smollm2-135m") == "smollm2-135m"
    assert name_of("owner/model") == "owner/model"
