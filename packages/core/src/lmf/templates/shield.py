"""Keeps special tokens out of the text of messages while Jinja renders them.

A Jinja template mixes its own text with that of messages, and afterwards nobody can tell them
apart. So before, the first character of whatever spells a special token in a message gives way to
a character that stands nowhere in the conversation, and comes back when the control tokens have
been found. The ends of a text are guarded too, where it could begin or finish a token together
with what the template writes beside it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from ..conversation import Conversation, Message

# the rarest letters, then private use. No template looks for them, and what writes a text as Python or JSON has
# it leaves letters as they are, where it would write a character of private use as an escape
_SUBSTITUTES = range(0x30000, 0x3134B), range(0xF0000, 0xFFFFE)


class Shield:
    """Finds special tokens in text, and guards the messages of conversations against them.

    Args:
        tokens: The special tokens.
    """

    def __init__(self, tokens: Collection[str]):
        self._tokens = frozenset(tokens)
        self._lengths = sorted({len(token) for token in tokens}, reverse=True)
        self._first = frozenset(token[0] for token in tokens)
        self._last = frozenset(token[-1] for token in tokens)
        characters = "".join(map(re.escape, sorted(self._first)))
        self._start = re.compile(f"[{characters}]" if characters else "(?!)")  # one regex of all is slow for thousands

    def split(self, text: str) -> list[str]:
        """Cut a text into what stands between special tokens and these, in turn; of several the longest."""
        parts, position = [], 0
        for found in self._start.finditer(text):
            start = found.start()
            if start < position:
                continue
            for length in self._lengths:
                token = text[start : start + length]
                if token in self._tokens:
                    parts += [text[position:start], token]
                    position = start + length
                    break
        parts.append(text[position:])
        return parts

    def guard(self, conversation: Conversation) -> tuple[Conversation, dict[int, str]]:
        """Return the conversation without special tokens, and how to translate a rendering back."""
        texts = [t for message in conversation.messages for t in _texts(message)] + [*map(repr, conversation.tools)]
        if not any(self._dangerous(text) for text in texts):
            return conversation, {}
        used = {ord(character) for text in texts for character in set(text)}
        free = (code for code in itertools.chain(*_SUBSTITUTES) if code not in used)
        marks: dict[str, str] = {}
        for character in self._first | {text[0] for text in _all(conversation) if text}:
            marks[character] = chr(next(free))

        def guarded(value: Any) -> Any:
            if isinstance(value, str):
                return self._guarded(value, marks)
            if isinstance(value, Mapping):
                return {guarded(key): guarded(item) for key, item in value.items()}
            return [guarded(item) for item in value] if isinstance(value, list | tuple) else value

        messages = tuple(
            replace(
                message,
                content=guarded(message.content),
                reasoning=guarded(message.reasoning),
                name=guarded(message.name),
                call_id=guarded(message.call_id),
                calls=tuple(
                    replace(call, name=guarded(call.name), id=guarded(call.id), arguments=guarded(call.arguments))
                    for call in message.calls
                ),
            )
            for message in conversation.messages
        )
        back = {ord(mark): character for character, mark in marks.items()}
        return Conversation(messages, tuple(guarded(tool) for tool in conversation.tools)), back

    def _dangerous(self, text: str) -> bool:
        """Tell whether a text holds a special token, or could have a part in one with its neighbours."""
        if not self._tokens or not text:
            return False
        if self._start.search(text) and (len(self.split(text)) > 1 or self._begins(text.rstrip()) is not None):
            return True
        return self._finishes(text.lstrip())

    def _begins(self, text: str) -> int | None:
        """Return where the end of a text begins a special token, or None."""
        for start in range(max(0, len(text) - self._lengths[0] + 1), len(text)):
            tail = text[start:]
            if tail[0] in self._first and any(token.startswith(tail) for token in self._tokens):
                return start
        return None

    def _finishes(self, text: str) -> bool:
        """Tell whether the beginning of a text finishes a special token."""
        for end in range(1, min(self._lengths[0], len(text) + 1)):
            head = text[:end]
            if head[-1] in self._last and any(len(t) > end and t.endswith(head) for t in self._tokens):
                return True
        return False

    def _guarded(self, text: str, marks: Mapping[str, str]) -> str:
        if not text or not self._tokens:
            return text
        while len(parts := self.split(text)) > 1:  # a token may stand inside another
            text = "".join(marks[part[0]] + part[1:] if i % 2 else part for i, part in enumerate(parts))
        while (start := self._begins(text.rstrip())) is not None:
            text = text[:start] + marks[text[start]] + text[start + 1 :]
        inner = text.lstrip()
        if inner and inner[0] in marks and self._finishes(inner):
            text = text[: len(text) - len(inner)] + marks[inner[0]] + inner[1:]
        return text


def _texts(message: Message) -> list[str]:
    texts = [message.content, message.reasoning, message.name, message.call_id]
    return texts + [part for call in message.calls for part in (call.name, call.id, *_strings(call.arguments))]


def _all(conversation: Conversation) -> list[str]:
    """Return every text of a conversation, without the white space before it."""
    texts = [text for message in conversation.messages for text in _texts(message)]
    return [text.lstrip() for text in (*texts, *_strings(list(conversation.tools)))]


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for item in value.items() for part in item for text in _strings(part)]
    return [text for item in value for text in _strings(item)] if isinstance(value, list | tuple) else []
