"""Conversation templates: how messages become text, and which text is trained.

One object renders text everywhere. Training, chat and evaluation call ``render``; the Jinja
text that ``jinja`` writes is saved with the model, so other tools render the same.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..conversation import Conversation, Message
from ..errors import DataError, PluginError


class Piece(NamedTuple):
    """A stretch of rendered text.

    Attributes:
        text: The text itself.
        control: True for text the template wrote. Only control text may contain special
            tokens; other text that spells one is encoded as plain characters.
        trained: True for what the assistant generates; text is encoded by itself from where it begins.
        weight: How much the loss counts that.
    """

    text: str
    control: bool = False
    trained: bool = False
    weight: float = 1.0

    @property
    def learned(self) -> bool:
        """Whether the loss counts it."""
        return self.trained and self.weight != 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """How a conversation becomes text for one family of models.

    A conversation is rendered as ``start``, then for each message its format. What asks the
    model to speak (``assistant``) is apart from what it answers (``reply``): only the answer
    and its end are trained, and generation starts exactly between the two. In every format
    ``{bos}`` and ``{eos}`` stand for the tokenizer's own tokens.

    Attributes:
        name: The name on the command line.
        source: Where the format is defined (a URL or a paper).
        user: Format of a user message, with one ``{content}``.
        assistant: What comes before a reply.
        reply: Format of a reply, with one ``{content}``, up to what ends it.
        after_reply: What stands between a reply and the next message; not trained.
        system: Format of a system message; None if the template has no place for one.
        system_in_user: The system text stands inside the next user message, before its content.
        tool: Format of a tool's result; None if the template has none.
        default_system: The system message used when a conversation has none.
        start: Written once, before everything.
        strip: Remove white space around every content.
        stop: Strings that end a reply; the first one must end ``reply``.
        tokens: Special tokens that the formats spell; those that a tokenizer lacks are added.
    """

    name: str
    source: str
    user: str
    assistant: str
    reply: str
    after_reply: str = ""
    system: str | None = None
    system_in_user: bool = False
    tool: str | None = None
    default_system: str | None = None
    start: str = ""
    strip: bool = False
    stop: tuple[str, ...]
    tokens: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in ("user", "reply", "system", "tool"):
            text = getattr(self, field)
            if text is not None and text.count("{content}") != 1:
                raise PluginError(f"template {self.name!r}: {field} must hold {{content}} exactly once")
        for field in ("start", "assistant", "after_reply"):
            if "{content}" in getattr(self, field):
                raise PluginError(f"template {self.name!r}: {field} must not hold {{content}}; only messages do")
        if self.default_system is not None and self.system is None:
            raise PluginError(f"template {self.name!r}: default_system needs system, the format of system messages")
        if not self.stop or not self.reply.endswith(self.stop[0]):
            raise PluginError(f"template {self.name!r}: reply must end with the first of stop, so that it is learned")

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        reply: bool = False,
        bos: str = "",
        eos: str = "",
    ) -> list[Piece]:
        """Render messages as pieces of text, in order.

        Args:
            messages: The conversation; roles are assumed to be in order.
            tools: The tools that the assistant may call; there is no place for any.
            reply: End where the assistant starts to speak.
            bos: The tokenizer's token for the beginning of a text, or "".
            eos: The tokenizer's token for its end, or "".

        Raises:
            DataError: The template has no place for a message, or for something in it.
        """
        messages = list(messages)
        if tools:
            raise DataError(f"the template {self.name!r} has no place for tools.")
        if self.default_system is not None and (not messages or messages[0].role != "system"):
            messages.insert(0, Message("system", self.default_system))
        pieces: list[Piece] = []

        def write(form: str, content: str = "", trained: bool = False, weight: float = 1.0) -> None:
            before, holds, after = _filled(form, bos, eos, trained, weight)
            if before:
                pieces.append(before)
            if content and holds:
                pieces.append(Piece(content, False, trained, weight))
            if after:
                pieces.append(after)

        write(self.start)
        pending = None  # a system text that waits for the next user message
        for message in messages:
            if message.reasoning or message.calls:
                what = "tool calls" if message.calls else "reasoning apart from the content"
                raise DataError(f"the template {self.name!r} has no place for {what}.")
            content = message.content.strip() if self.strip else message.content
            if message.role == "system" and self.system is not None and pending is None:
                if self.system_in_user:
                    pending = content
                else:
                    write(self.system, content)
            elif message.role == "user" and pending is not None:
                before, after = self.user.split("{content}")
                write(before)
                write(self.system or "", pending)
                write("{content}" + after, content)
                pending = None
            elif message.role == "user":
                write(self.user, content)
            elif message.role == "assistant":
                write(self.assistant)
                write(self.reply, content, trained=True, weight=message.weight)
                write(self.after_reply)
            elif message.role == "tool" and self.tool is not None:
                write(self.tool, content)
            else:
                raise DataError(f"the template {self.name!r} has no place for a {message.role} message")
        if pending is not None:
            raise DataError(f"the template {self.name!r} writes the system text into a user message, and there is none")
        if reply:
            write(self.assistant)
        return pieces

    def examples(self, conversation: Conversation, *, bos: str = "", eos: str = "") -> list[list[Piece]]:
        """Render what is to be learned from a conversation: here always all of it at once.

        Raises:
            DataError: The template has no place for a message, or for something in it.
        """
        return [self.render(conversation.messages, tools=conversation.tools, bos=bos, eos=eos)]

    def stops(self, eos: str = "") -> tuple[str, ...]:
        """Return the strings that end a reply, with the tokenizer's own token filled in."""
        return tuple(stop.replace("{eos}", eos) for stop in self.stop)

    def controls(self) -> str:
        """Return all the text that the template itself may write."""
        parts = (self.start, self.system, self.user, self.assistant, self.reply, self.after_reply, self.tool)
        return "\n".join(part for part in parts if part)

    def jinja(self) -> str:
        """Return the same format as a chat template for ``transformers``, with generation marks."""
        content = "(message['content'] | trim)" if self.strip else "message['content']"
        no_place = _quote(f"the template {self.name!r} has no place for a ")
        user = [_write(_terms(self.user, content))]
        system: list[str] = []
        if self.system is not None and self.system_in_user:  # state.system waits for the next user message
            before, after = self.user.split("{content}")
            user = [
                _write([*_terms(before), "state.system", *_terms("{content}" + after, content)]),
                "{%- set state.system = '' %}",
            ]
            system = [
                "{%- elif message['role'] == 'system' and not state.system %}",
                f"{{%- set state.system = {' + '.join(_terms(self.system, content))} %}}",
            ]
        elif self.system is not None:
            system = ["{%- elif message['role'] == 'system' %}", _write(_terms(self.system, content))]
        lines = ["{%- set rest = messages %}"]
        if self.default_system is not None:
            lines += [
                "{%- if not messages or messages[0]['role'] != 'system' %}",
                f"{{%- set rest = [{{'role': 'system', 'content': {_quote(self.default_system)}}}] + messages %}}",
                "{%- endif %}",
            ]
        if self.system_in_user:
            lines.append("{%- set state = namespace(system='') %}")
        lines += [_write(_terms(self.start)), "{%- for message in rest %}"]
        lines += ["{%- if message['role'] == 'user' %}", *user]
        lines += ["{%- elif message['role'] == 'assistant' %}", _write(_terms(self.assistant))]
        lines += ["{%- generation %}", _write(_terms(self.reply, content)), "{%- endgeneration %}"]
        lines += [_write(_terms(self.after_reply)), *system]
        if self.tool is not None:
            lines += ["{%- elif message['role'] == 'tool' %}", _write(_terms(self.tool, content))]
        lines += [
            "{%- else %}",
            _write([f"raise_exception({no_place} + message['role'] + ' message')"]),
            "{%- endif %}",
            "{%- endfor %}",
        ]
        if self.system_in_user:
            unread = _quote(f"the template {self.name!r} writes the system text into a user message, and there is none")
            lines += ["{%- if state.system %}", _write([f"raise_exception({unread})"]), "{%- endif %}"]
        lines += ["{%- if add_generation_prompt %}", _write(_terms(self.assistant)), "{%- endif %}"]
        return "\n".join(line for line in lines if line)


@functools.lru_cache(maxsize=4096)
def _filled(form: str, bos: str, eos: str, trained: bool, weight: float) -> tuple[Piece | None, bool, Piece | None]:
    """Return what a field writes before the content, whether it has a place for one, and what it writes behind."""
    form = form.replace("{bos}", bos).replace("{eos}", eos)
    before, found, after = form.partition("{content}")
    pieces = [Piece(text, True, trained, weight) if text else None for text in (before, after)]
    return pieces[0], bool(found), pieces[1]


def _terms(form: str, content: str = "") -> list[str]:
    """Return Jinja expressions whose sum is a format. A tokenizer may lack bos or eos."""
    values = {"{content}": content, "{bos}": "(bos_token or '')", "{eos}": "(eos_token or '')"}
    parts = re.split(r"(\{content\}|\{bos\}|\{eos\})", form)
    return [values.get(part) or _quote(part) for part in parts if part]


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # Jinja reads the escapes of JSON


def _write(terms: Sequence[str]) -> str:
    return f"{{{{- {' + '.join(terms)} }}}}" if terms else ""
