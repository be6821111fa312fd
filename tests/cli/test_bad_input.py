"""Bad input: one clear message with what, where and what to do, the documented exit code, and nothing written.

Nearly all of it is found before torch is imported; ``refused`` checks that too.
"""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from terminal import Done, fresh, hollow_model, lmf_without_torch, talk, tree

USER, REPLY = {"role": "user", "content": "Ping?"}, {"role": "assistant", "content": "Pong!"}
RUN = ("train", "full", "--model", "./model", "--data", "data.jsonl")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder in which a run could start."""
    monkeypatch.chdir(tmp_path)
    hollow_model(tmp_path / "model")
    (tmp_path / "data.jsonl").write_text(talk())
    return tmp_path


def check(done: Done, code: int) -> str:
    """Check the form of a refusal and return its message."""
    assert (done.code, done.out) == (code, ""), done
    assert "Traceback" not in done.err
    assert len(done.err.splitlines()) <= 12
    return done.err.removeprefix("error: ").rstrip("\n")


def refused(code: int, *args: str) -> str:
    """Run a command that has to fail without importing torch or writing anything; return its message."""
    before = tree(Path())
    message = check(lmf_without_torch(*args), code)
    assert tree(Path()) == before
    return message


def test_what_the_tests_below_spoil_would_run(folder):
    done = lmf_without_torch("plan", *RUN)
    assert (done.code, done.err) == (0, "")


# Data


def messages(*turns: Any, **more: Any) -> str:
    return json.dumps({"messages": turns, **more}) + "\n"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "data.jsonl is empty."),
        (b" \n\n", "data.jsonl holds no records."),
        (talk() + '{"messages": [\n', "data.jsonl:2: "),
        (talk() + "\n{'messages': []}\n", "data.jsonl:3: "),
        (talk() + "5\n", "data.jsonl:2: the record is a number"),
        (talk().encode("utf-16"), "data.jsonl is UTF-16 text; convert it to UTF-8."),
        (talk("Größe").encode("latin-1"), "data.jsonl:1: byte "),
        (b"PK\x03\x04 and so on", "data.jsonl is a ZIP archive; unpack it."),
        ('{"prompt": "Ping?", "answer": "Pong!"}\n', "data.jsonl:1: no data format has the keys 'prompt', 'answer'."),
        ('{"text": "Once upon a time."}\n', "data.jsonl:1: the record is a text (format text), and here conversations"),
        (messages(), "data.jsonl:1: the conversation has no messages."),
        (messages(USER, REPLY | {"content": None}), "data.jsonl:1: messages[1].content is null; it must be a text."),
        (messages(USER, REPLY | {"content": 7}), "data.jsonl:1: messages[1].content is the number 7"),
        (messages(USER, REPLY | {"content": " "}), "data.jsonl:1: messages[1] is empty; there is no reply to learn."),
        (
            messages(USER, REPLY | {"role": "asistant"}),
            "data.jsonl:1: messages[1].role is 'asistant'; roles are system",
        ),
        (messages(USER, {"role": "assistant"}), "data.jsonl:1: messages[1] has no key 'content'"),
        (
            messages(REPLY, USER),
            "data.jsonl:1: messages[0]: a conversation cannot begin with a message of the role ass",
        ),
        (messages(USER, USER, REPLY), "data.jsonl:1: messages[1]: the role user cannot follow user; assistant comes"),
        (messages(USER), "data.jsonl:1: the conversation ends with a user message; there is no reply to learn."),
        (messages(USER, REPLY, tools=[{"name": "f"}]), "data.jsonl:1: tools: lmf cannot learn from tool declarations"),
    ],
    ids=repr,
)
def test_data_that_cannot_be_learned_from(folder, content, told):
    Path("data.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert refused(4, *RUN).startswith(told)
