"""``lmf chat``: a conversation with a model on the terminal."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmf import ConfigError, LmfError, Message, Opening, Plugins, Sampling
from lmf.config import make, option
from lmf.errors import did_you_mean
from lmf.runs import write_file

from . import flags
from .listings import table
from .screen import Screen

if TYPE_CHECKING:
    from lmf.generate.engine import Engine, Reply
    from lmf.generate.opening import Chatter

QUOTE = '"""'

HELP = """\
/help              this list
/reset             forget what was said; the system message stays
/system TEXT       another system message, or none: /system
/seed NUMBER       start of the random numbers, or another each time: /seed
/set NAME VALUE    change a setting of replies; /set alone shows them
/save FILE         write the conversation as a record of training data
/exit              leave, as does Ctrl-D

Ctrl-C stops a reply. A line that ends with \\ goes on in the next one, and what stands between two lines
with \"\"\" is one message. A space before / makes a command a message."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Talk:
    """How a conversation begins."""

    system: str | None = option(None, "A system message.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Speaking(Sampling):
    """How replies are written."""

    max_tokens: int = option(1024, "Longest reply in tokens.", min=1)


def chat(plugins: Plugins) -> Callable[..., None]:
    """Return the command ``lmf chat``."""

    def run(model: flags.Model, talk: Talk, reply: Speaking, opening: Opening) -> None:
        from lmf.plan import check_opening

        check_opening(model, opening, plugins)
        from lmf.generate.opening import start  # torch is imported here

        chatter, engine = start(model, plugins, opening)
        if chatter.template is None:
            raise ConfigError(
                f"{model} continues texts and has no template to talk with. Choose a --template, or use lmf generate."
            )
        Session(chatter, engine, reply, talk.system).run(Reader())

    return run


class Reader:
    """Reads messages from the terminal, or from standard input without asking."""

    def __init__(self) -> None:
        self.terminal = sys.stdin.isatty()
        if self.terminal:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401 (which gives input() arrow keys and earlier lines)

    def line(self, sign: str) -> str:
        return input(sign if self.terminal else "")

    def message(self) -> str | None:
        """Return the next message, of one line or several; None at the end."""
        try:
            text = self.line("> ")
            while text.endswith("\\"):
                text = text[:-1] + "\n" + self.line(". ")
            if text.lstrip().startswith(QUOTE):
                text = text.lstrip().removeprefix(QUOTE)
                while not text.rstrip().endswith(QUOTE):
                    text += "\n" + self.line(". ")
                text = text.rstrip().removesuffix(QUOTE).strip("\n")
            return text
        except EOFError:
            return None


class Session:
    """A conversation.

    Args:
        chatter: The model.
        engine: Writes its replies.
        sampling: How.
        system: The system message.

    Attributes:
        messages: What was said so far, without the system message.
    """

    def __init__(self, chatter: Chatter, engine: Engine, sampling: Sampling, system: str | None = None):
        self.chatter, self.engine, self.sampling = chatter, engine, sampling
        self.messages: list[Message] = []
        self.system: str | None = None
        self._set_system(system)
        self.screen = Screen()
        self.commands: dict[str, Callable[[str], None]] = {
            "help": lambda _: print(HELP),
            "reset": self.reset,
            "system": self.set_system,
            "seed": lambda text: self.change("seed", text),
            "set": self.set,
            "save": self.save,
        }

    def run(self, reader: Reader) -> None:
        """Talk until the user leaves."""
        if reader.terminal:
            print("/help lists the commands, Ctrl-D leaves.")
        while True:
            try:
                text = reader.message()
            except KeyboardInterrupt:
                if not reader.terminal:
                    raise
                print("\n/exit or Ctrl-D leaves.")
                continue
            if text is None or text.strip() in ("/exit", "/quit"):
                return
            try:
                if text.startswith("/"):
                    self.command(text)
                elif text.strip():
                    self.say(text)
            except LmfError as error:
                print(error)

    def say(self, text: str) -> None:
        """Say something, and show the reply while it comes."""
        said = [*self.messages, Message("user", text)]
        ids = self.chatter.ids([*self.opening(), *said])
        (reply,) = self.engine.submit(ids, self.sampling)
        self.screen.begin()
        with _interrupting(reply):
            shown = 0
            while reply.finish is None:
                self.engine.step()
                self.screen.show(reply.text[shown:], len(reply.ids))
                shown = len(reply.text)
        self.screen.end(self._note(reply))
        if reply.text or reply.finish != "cancelled":  # else it is as if nothing had been said
            self.messages = [*said, Message("assistant", reply.text)]

    def _note(self, reply: Reply) -> str:
        used = f"{len(reply.prompt) + len(reply.ids):,} of {self.engine.context:,} tokens of context"
        note = f"{len(reply.ids)} tokens, {self.screen.rate:.1f} tokens/s, {used}"
        ends = {
            "cancelled": "; stopped",
            "length": "; cut: /set max-tokens allows more" if reply.limit == self.sampling.max_tokens else "; full",
        }
        return note + ends.get(reply.finish or "", "")

    def opening(self) -> list[Message]:
        """Return the system message, if there is one."""
        return [] if self.system is None else [Message("system", self.system)]

    def command(self, text: str) -> None:
        """Obey a command.

        Raises:
            LmfError: There is none like it, or it cannot be obeyed.
        """
        name, _, rest = text[1:].strip().partition(" ")
        if name not in self.commands:
            raise ConfigError(f"No command is called /{name}.{did_you_mean(name, self.commands)} /help lists them.")
        self.commands[name](rest.strip())

    def reset(self, _: str = "") -> None:
        self.messages = []
        print("forgotten")

    def set_system(self, text: str) -> None:
        self._set_system(text or None)
        print("another system message" if text else "no system message")

    def _set_system(self, text: str | None) -> None:
        """Take a system message, if the template has a place for one."""
        if text is not None:
            self.chatter.ids([Message("system", text), Message("user", "Hi")])
        self.system = text

    def set(self, text: str) -> None:
        if not text:
            rows = [
                [f.name.replace("_", "-"), _shown(getattr(self.sampling, f.name)), f.metadata["help"]]
                for f in dataclasses.fields(self.sampling)
            ]
            table(["setting", "value", "what it is"], rows)
            return
        name, _, value = text.partition(" ")
        self.change(name.lstrip("-").replace("-", "_"), value.strip())

    def change(self, name: str, text: str) -> None:
        """Change a setting; an empty text brings the default back.

        Raises:
            ConfigError: There is no such setting, or it cannot have this value.
        """
        names = [f.name for f in dataclasses.fields(self.sampling)]
        if name not in names:
            raise ConfigError(f"No setting is called {name!r}.{did_you_mean(name, names)} /set lists them.")
        values = {each: getattr(self.sampling, each) for each in names}
        del values[name]
        given = {name: flags.value_of(type(self.sampling), name, text)} if text else {}
        self.sampling = make(type(self.sampling), values | given)
        print(f"{name.replace('_', '-')} is {_shown(getattr(self.sampling, name))}")

    def save(self, text: str) -> None:
        if not text:
            raise ConfigError("/save needs the name of a file: /save talk.jsonl")
        if not self.messages:
            raise ConfigError("Nothing was said yet.")
        file = Path(text).expanduser()
        if file.exists():
            raise ConfigError(f"{file} exists; name another file.")
        said = [{"role": each.role, "content": each.content} for each in (*self.opening(), *self.messages)]
        try:
            write_file(file, json.dumps({"messages": said}, ensure_ascii=False) + "\n")
        except OSError as error:
            raise LmfError(f"{file} cannot be written: {error.strerror or error}.") from None
        print(f"saved {file}")


@contextlib.contextmanager
def _interrupting(reply: Reply) -> Iterator[None]:
    """Let Ctrl-C end a reply instead of the program."""
    before = signal.signal(signal.SIGINT, lambda *_: reply.cancel())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _shown(value: Any) -> str:
    return ", ".join(map(repr, value)) or "none" if isinstance(value, tuple) else str(value)
