"""The calls of tools in what a model wrote, read in the notation of its template, which is learned from samples."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..conversation import Conversation, Message, ToolCall
from ..errors import DataError
from .jinja import AnyTemplate
from .traits import SAMPLES

_SAMPLE = SAMPLES["a tool call"]
_CALL = _SAMPLE.messages[1].calls[0]
_OTHER = replace(_CALL, arguments={"city": "Rome"}, id="call00002")
_NAME = r"([\w.-]+?)"


@dataclass(frozen=True, slots=True)
class Notation:
    """How a template writes calls.

    Attributes:
        marker: What stands between what is said and the first call; "" if nothing does.
        lead: The end of it, which stands before every call.
        between: What stands between a name and the arguments; None if both are values of one JSON object.
        name: The key of the name in it.
        arguments: The key of the arguments.
    """

    marker: str
    lead: str
    between: str | None = None
    name: str = ""
    arguments: str = ""

    def read(self, text: str, names: Collection[str]) -> tuple[str, list[ToolCall]]:
        """Return what is said in a reply, and its calls. What is not certainly a call is said.

        Args:
            text: The reply, with its special tokens, without the one that ended it.
            names: The tools there are; without a marker, nothing else tells a call from other text.
        """
        found = self._objects(text) if self.between is None else self._separate(text)
        kept = [(at, call) for at, call in found if self.marker or call.name in names]
        if not kept:
            return text, []
        said = text[: kept[0][0]]
        return said.removesuffix(self.marker.removesuffix(self.lead)).strip(), [call for _, call in kept]

    def _objects(self, text: str) -> Iterator[tuple[int, ToolCall]]:
        """Yield calls that are JSON objects, or items of JSON lists, with where the first marker stands."""
        start = text.find(self.marker)
        if start < 0 or not (self.marker or text.lstrip()[:1] in ("{", "[")):
            return
        for _, value in _located(text, start + len(self.marker)):
            for each in value if isinstance(value, list) else [value]:
                if isinstance(each, dict) and (call := _call(each.get(self.name), each.get(self.arguments), each)):
                    yield start, call

    def _separate(self, text: str) -> Iterator[tuple[int, ToolCall]]:
        """Yield calls whose name stands outside of the JSON object, with where each begins."""
        between = re.sub(r"\\?\d+", r"\\d+", re.escape(self.between or "").replace("\\\n", r"\s*"))
        start = re.escape(self.lead) if self.lead else r"(?:^|(?<=>))\s*"
        for match in re.finditer(start + _NAME + between + r"(?=\{)", text):
            at, value = next(_located(text, match.end()), (-1, None))
            if at == match.end() and (call := _call(match[1], value, {})):
                yield match.start(), call


def notation(template: AnyTemplate, bos: str = "<BOS>", eos: str = "<EOS>") -> Notation | None:
    """Learn how a template writes calls; None if it has no place for them, or writes them in no way that is known.

    Args:
        template: The template.
        bos: The tokenizer's token for the beginning of a text.
        eos: The tokenizer's token for its end.
    """

    def written(said: str, *calls: ToolCall) -> str:
        return _written(template, bos, eos, said, *calls)

    one = written("", _CALL)
    begin = _begin(one, _CALL)
    if begin is None:
        return None
    said, two = written("Let me see.", _CALL), written("", _CALL, _OTHER)
    marker = _shared_end(one[: begin.at], said, _begin(said, _CALL))
    lead = _shared_end(marker, two, _begin(two, _OTHER)) if begin.between is not None else marker
    return Notation(marker.strip(), lead.strip(), begin.between, *begin.keys)


@dataclass(frozen=True, slots=True)
class _Begin:
    """Where a call begins in a text, and what follows: see ``Notation``."""

    at: int
    between: str | None
    keys: tuple[str, str]


def _begin(text: str, call: ToolCall) -> _Begin | None:
    """Find a call in what a template wrote."""
    for start, value in _located(text, 0):
        if isinstance(value, list):
            value = value[-1] if value else None
        if not isinstance(value, dict):
            continue
        keys = {json.dumps(each): key for key, each in value.items()}
        name, arguments = keys.get(json.dumps(call.name)), keys.get(json.dumps(call.arguments))
        if name and arguments:
            return _Begin(start, None, (name, arguments))
        at = text.rfind(call.name, 0, start)
        if value == call.arguments and at >= 0:
            return _Begin(at, text[at + len(call.name) : start], ("", ""))
    return None


def _written(template: AnyTemplate, bos: str, eos: str, said: str, *calls: ToolCall) -> str:
    """Return what a template writes as a reply that says something and calls; "" if it has no place for that."""
    results = [Message("tool", "{}", name=call.name, call_id=call.id) for call in calls]
    talk = [_SAMPLE.messages[0], Message("assistant", said, calls=calls), *results, _SAMPLE.messages[-1]]
    try:
        pieces = template.examples(Conversation(tuple(talk), _SAMPLE.tools), bos=bos, eos=eos)[0]
    except DataError:
        return ""
    learned = itertools.dropwhile(lambda piece: not piece.learned, pieces)
    return "".join(piece.text for piece in itertools.takewhile(lambda piece: piece.learned, learned))


def _shared_end(before: str, text: str, begin: _Begin | None) -> str:
    """Return the end that a text has in common with what stands before a call in another; all of it without one."""
    if begin is None:
        return before
    pairs = zip(reversed(before), reversed(text[: begin.at]), strict=False)
    same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return before[len(before) - same :]


def _located(text: str, start: int) -> Iterator[tuple[int, Any]]:
    """Yield the JSON objects and lists in a text, each with its position; those within others are not looked for."""
    decoder = json.JSONDecoder()
    while match := re.compile(r"[\[{]").search(text, start):
        try:
            value, start = decoder.raw_decode(text, match.start())
            yield match.start(), value
        except (ValueError, RecursionError):
            start = match.end()


def _call(name: Any, arguments: Any, value: Mapping[str, Any]) -> ToolCall | None:
    """Return a call, if that is what a name and arguments are."""
    if isinstance(arguments, str):
        arguments = next((found for at, found in _located(arguments, 0) if at == 0), None)
    if not (isinstance(name, str) and name and isinstance(arguments, dict)):
        return None
    id = value.get("id")
    return ToolCall(name, arguments, id if isinstance(id, str) else "")
