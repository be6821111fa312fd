"""``lmf chat``: what is said, the commands, and what the terminal shows."""

import contextlib
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lmf import Message, Plugins
from lmf.generate.opening import open_model
from lmf_cli import screen
from lmf_cli.chat import Reader, Session, Speaking
from terminal import lmf, lmf_without_torch

TEMPLATE = "chatml"


@pytest.fixture
def talk(tiny, tmp_path, monkeypatch):
    """Runs ``lmf chat`` with some lines as its input."""
    monkeypatch.chdir(tmp_path)

    def run(*lines: str, flags: tuple[str, ...] = ()):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        return lmf("chat", str(tiny), "--template", TEMPLATE, "--max-tokens", "6", *flags)

    return run


def saved(name: str = "talk.jsonl") -> list[dict]:
    return json.loads(Path(name).read_text())["messages"]


@pytest.fixture(scope="module")
def chatter(tiny):
    return open_model(str(tiny), Plugins(), TEMPLATE)


def reply_to(chatter, *messages: Message) -> str:
    engine = chatter.engine(runner(chatter))
    (reply,) = engine.submit(chatter.ids(messages), Speaking(max_tokens=6))
    engine.finish([reply])
    return reply.text


def runner(chatter):
    from lmf.generate.caches import runner_for

    return runner_for(chatter.model)


def test_a_reply_is_to_all_that_was_said(talk, chatter):
    done = talk("Ping?", "And now?", "/save talk.jsonl", flags=("--system", "Be brief."))
    assert done.code == 0
    system, first = Message("system", "Be brief."), Message("user", "Ping?")
    one = reply_to(chatter, system, first)
    two = reply_to(chatter, system, first, Message("assistant", one), Message("user", "And now?"))
    assert done.out == f"{one}\n{two}\nsaved talk.jsonl\n"
    roles = ["system", "user", "assistant", "user", "assistant"]
    assert saved() == [
        {"role": role, "content": text}
        for role, text in zip(roles, ["Be brief.", "Ping?", one, "And now?", two], strict=True)
    ]


def test_what_is_saved_is_training_data(talk):
    talk("Ping?", "/save talk.jsonl")
    assert lmf("data", "check", "talk.jsonl").code == 0


def test_reset_forgets_what_was_said_and_keeps_the_system_message(talk):
    done = talk("Ping?", "/reset", "Pong?", "/save talk.jsonl", flags=("--system", "Be brief."))
    assert done.out.splitlines()[1] == "forgotten"
    assert [each["content"] for each in saved()][:2] == ["Be brief.", "Pong?"]


def test_another_system_message_and_none(talk):
    talk("/system Be long.", "Hi", "/save a.jsonl", "/system", "/save b.jsonl")
    assert saved("a.jsonl")[0] == {"role": "system", "content": "Be long."}
    assert saved("b.jsonl") == saved("a.jsonl")[1:]


def test_the_seed_decides_what_is_drawn(talk):
    one, again, other, free = (
        talk("/set temperature 1", seed, "Ping?").out.splitlines()[-1]
        for seed in ("/seed 1", "/seed 1", "/seed 2", "/seed")
    )
    assert one == again
    assert one != other
    assert free not in (one, other)


def test_settings_are_shown_and_changed(talk):
    done = talk(
        "/set top-p 0.5", "/set stop END", "/set", "/set stop", "/set max_tokens 2", "Hi", flags=("--seed", "9")
    )
    told = done.out.splitlines()
    assert told[0] == "top-p is 0.5"
    assert told[1] == "stop is 'END'"
    rows = dict(line.split(maxsplit=2)[:2] for line in told[2:-3])
    assert (rows["top-p"], rows["seed"], rows["stop"], rows["max-tokens"]) == ("0.5", "9", "'END'", "6")
    assert told[-3:-1] == ["stop is none", "max-tokens is 2"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("/set temperature hot", "--temperature is 'hot'; it must be a number."),
        ("/set temperature -1", "--temperature is -1.0; it must be at least 0."),
        ("/set heat 3", "No setting is called 'heat'."),
        ("/set temprature 3", "Did you mean 'temperature'?"),
        ("/seed x", "--seed is 'x'; it must be a whole number."),
        ("/rest", "No command is called /rest. Did you mean 'reset'? /help lists them."),
        ("/save", "/save needs the name of a file"),
        ("/save talk.jsonl", "Nothing was said yet."),
        ("/", "No command is called /."),
        ("word " * 3000, "The prompt has "),
    ],
)
def test_what_cannot_be_obeyed_is_told_and_the_talk_goes_on(talk, line, told):
    done = talk(line, "/help")
    assert done.code == 0
    assert told in done.out
    assert "/reset             forget" in done.out


def test_no_file_is_replaced(talk):
    Path("talk.jsonl").write_text("mine")
    done = talk("Ping?", "/save talk.jsonl", "/save nowhere/talk.jsonl")
    assert "talk.jsonl exists; name another file." in done.out
    assert "nowhere/talk.jsonl cannot be written" in done.out or Path("nowhere/talk.jsonl").exists()
    assert Path("talk.jsonl").read_text() == "mine"


def test_a_message_may_have_several_lines(talk):
    talk("one\\", "two", '"""', "three", "", '  four"""', '"""five"""', " /reset", "/save talk.jsonl")
    asked = [each["content"] for each in saved() if each["role"] == "user"]
    assert asked == ["one\ntwo", "three\n\n  four", "five", " /reset"]


def test_leaving(talk):
    assert talk("/exit", "Ping?").out == ""
    assert talk().out == ""


def test_a_system_message_without_a_place_is_refused_at_once(talk):
    done = talk("Ping?", flags=("--system", "x", "--template", "vanilla"))
    assert done.code != 0
    assert "system" in done.err
    assert done.out == ""


def test_a_model_of_texts_is_not_talked_to(tiny, monkeypatch):
    done = lmf("chat", str(tiny))
    assert done.code == 2
    assert "continues texts and has no template to talk with" in done.err


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("nosuch", "No model is called 'nosuch'."),
        ("./model --temperature 99", "--temperature is 99.0; it must be at most 10."),
        ("./model --template chatlm", "No template is called 'chatlm'."),
        ("./nowhere", "./nowhere: no such folder"),
    ],
)
def test_a_wrong_line_is_refused_before_torch_is_loaded(tiny, tmp_path, monkeypatch, line, told):
    monkeypatch.chdir(tmp_path)
    Path("model").symlink_to(tiny)
    done = lmf_without_torch("chat", *line.split())
    assert done.code in (1, 2)
    assert told in done.err


# On a terminal


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def rendered(written: str) -> list[str]:
    """What a terminal of endless width shows of text, of a cleared end of line, and of a cursor that goes left."""
    rows, column = [""], 0
    for text, code, number, letter in re.findall(r"([^\x1b]+)|(\x1b\[(\d*)([A-Za-z]))", written):
        for letter_shown in text:
            if letter_shown == "\n":
                rows.append("")
                column = 0
            else:
                rows[-1] = rows[-1][:column] + letter_shown + rows[-1][column + 1 :]
                column += 1
        if code and letter == "K":
            rows[-1] = rows[-1][:column]
        elif code and letter == "D":
            column -= int(number)
    return rows


def test_the_speed_stands_behind_the_text_and_vanishes(monkeypatch):
    monkeypatch.setattr(screen.shutil, "get_terminal_size", lambda: os.terminal_size((40, 24)))
    out = Terminal()
    shown = screen.Screen(out)
    shown.begin()
    shown.show("Once", 1)
    assert re.fullmatch(r"Once  \d+\.\d tokens/s", rendered(out.getvalue())[-1])
    shown.show(" upon\na", 4)
    assert rendered(out.getvalue())[0] == "Once upon"
    shown.show(" " + "x" * 30, 5)  # no room for it
    assert rendered(out.getvalue())[1] == "a " + "x" * 30
    shown.end("done")
    assert rendered(out.getvalue()) == ["Once upon", "a " + "x" * 30, "[done]", ""]


def test_a_reply_commands_no_terminal():
    out = Terminal()
    screen.Screen(out).show("a\x1b]0;owned\x07\x9b2J\tb\r", 1)
    assert "a\\x1b]0;owned\\x07\\x9b2J\tb\\x0d" in out.getvalue()


def test_elsewhere_a_reply_is_shown_as_it_is():
    out = io.StringIO()
    shown = screen.Screen(out)
    shown.begin()
    shown.show("a\x1b", 1)
    shown.end("done")
    assert out.getvalue() == "a\x1b\n"


def test_ctrl_c_stops_a_reply_and_not_the_program(chatter, capsys):
    session = Session(chatter, chatter.engine(runner(chatter)), Speaking(max_tokens=500))
    show, shown = session.screen.show, []

    def interrupt(text: str, tokens: int) -> None:
        show(text, tokens)
        shown.append(text)
        if len(shown) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    session.screen.show = interrupt  # type: ignore[method-assign]
    session.say("Ping?")
    assert len(shown) <= 4
    assert [each.role for each in session.messages] == ["user", "assistant"]
    assert session.messages[1].content == "".join(shown)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    session.say("Once more?")
    assert len(session.messages) == 4


def test_a_reply_that_was_stopped_before_it_began_was_never_asked_for(chatter, monkeypatch):
    session = Session(chatter, chatter.engine(runner(chatter)), Speaking(max_tokens=500))
    monkeypatch.setattr(session.engine, "step", lambda: os.kill(os.getpid(), signal.SIGINT))
    session.say("Ping?")
    assert session.messages == []


def test_ctrl_c_between_replies_leaves_nothing(chatter, capsys, monkeypatch):
    lines = iter([KeyboardInterrupt, "/exit"])

    def line(sign: str) -> str:
        found = next(lines)
        if isinstance(found, str):
            return found
        raise found

    reader = Reader()
    reader.terminal = True
    monkeypatch.setattr(reader, "line", line)
    Session(chatter, chatter.engine(runner(chatter)), Speaking()).run(reader)
    assert "/exit or Ctrl-D leaves." in capsys.readouterr().out


def test_a_talk_on_a_real_terminal(tiny, tmp_path):
    """Typed into a terminal: a message, Ctrl-C in the middle of its reply, a second one, Ctrl-D."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "lmf_cli", "chat", str(tiny), "--template", TEMPLATE, "--max-tokens", "900"]
    process = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=tmp_path,
        start_new_session=True,
        preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
    )
    os.close(theirs)
    seen = b""

    def until(pattern: str, seconds: float = 60) -> None:
        nonlocal seen
        end = time.monotonic() + seconds
        while not re.search(pattern, seen.decode(errors="replace")):
            assert time.monotonic() < end, seen
            if select.select([ours], [], [], 0.1)[0]:
                seen += os.read(ours, 4096)

    with contextlib.closing(os.fdopen(ours, "wb", buffering=0)) as keys:
        until("> ")
        keys.write(b"Ping?\r")
        until(r"tokens/s.*tokens/s")
        keys.write(b"\x03")
        until(r"tokens of context; stopped\][^>]*> ")
        seen = b""
        keys.write(b"/set max-tokens 3\r")
        until(r"max-tokens is 3[^>]*> ")
        keys.write(b"Pong?\r")
        until(r"\[3 tokens, .* tokens/s, .* of 512 tokens of context; cut: /set max-tokens allows more\]")
        until(r"allows more\][^>]*> ")
        keys.write(b"\x04")
        assert process.wait(20) == 0
