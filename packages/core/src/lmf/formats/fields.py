"""Fields of a record: each is what its format says, or an error that names the key."""

from __future__ import annotations

import difflib
import math
import reprlib
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

from ..data.jsonfile import noun, parse
from ..errors import DataError


def text(path: str, value: Any) -> str:
    """Return a text, or the joined texts of a list of parts ``{"type": "text", "text": ...}``."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value or not all(isinstance(part, dict) for part in value):
        raise DataError(f"{path} is {noun(value)}; it must be a text.")
    for number, part in enumerate(value):
        if part.get("type") != "text":
            kind = reprlib.repr(part.get("type"))
            raise DataError(f"{path}[{number}] is a part of the type {kind}; lmf takes text only.")
    return "".join(text(f"{path}[{number}].text", part.get("text")) for number, part in enumerate(value))


def items(path: str, value: Any) -> list[Any]:
    """Return a list."""
    if not isinstance(value, list):
        raise DataError(f"{path} is {noun(value)}; it must be a list.")
    return value


def flag(path: str, value: Any) -> bool:
    """Return a truth value; numbers and words are none."""
    if not isinstance(value, bool):
        raise DataError(f"{path} is {noun(value)}; it must be true or false.")
    return value


def number(path: str, value: Any) -> float:
    """Return a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{path} is {noun(value)}; it must be a number.")
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    if not math.isfinite(result):
        raise DataError(f"{path} is {noun(value)}; no number in the data may be that large.")
    return result


def unpacked(path: str, value: Any) -> Any:
    """Return a value that may be written as a JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return parse(value)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def missing(path: str, key: str, record: Mapping[str, Any]) -> DataError:
    """Return the error that an object lacks a key."""
    return DataError(f"{path} has no key {key!r}; its keys are {reprlib.repr(list(record))}.")


def given(record: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    """Return those of the keys that hold something."""
    return [key for key in keys if not _empty(record.get(key))]


def allow(
    record: Mapping[str, Any], known: frozenset[str], path: str = "", outer: frozenset[str] = frozenset()
) -> None:
    """Refuse keys that would be lost in silence; all others are notes of the data's author.

    Args:
        record: The object.
        known: The keys that are read.
        path: What stands before a key in an error.
        outer: The keys that the record around the object has instead.

    Raises:
        DataError: A key changes what there is to learn and is not read, or it nearly spells one that is.
    """
    for key in record:
        if key in known:
            continue
        if key not in _MEANINGS:
            if (meant := misspelled(key, known)) and meant not in record:
                raise DataError(f"{path}{key} is an unknown key. Did you mean {meant!r}?")
            continue
        what, harmless = _MEANINGS[key]
        if harmless(record[key]):
            continue
        if key in outer:
            raise DataError(f"{path}{key}: a message has none; write it in the record, beside the messages.")
        if key in _JUDGEMENTS:
            flag(f"{path}{key}", record[key])
        raise DataError(f"{path}{key}: {what}")


@lru_cache(maxsize=4096)
def misspelled(key: str, known: frozenset[str]) -> str:
    """Return the known key that ``key`` nearly spells, or ""; keys that resemble none are the data's own notes."""
    close = difflib.get_close_matches(key.lower(), sorted(known), n=1, cutoff=0.8)
    return close[0] if close else ""


def text_only(record: Mapping[str, Any]) -> None:
    """Refuse images, video and audio."""
    for key in sorted(_MEDIA & record.keys()):
        what, harmless = _MEANINGS[key]
        if not harmless(record[key]):
            raise DataError(f"{key}: {what}")


def _empty(value: Any) -> bool:
    return not value or value == "[]"


def _judges_nothing(value: Any) -> bool:
    """Whether a label is none of a good or bad reply, such as the name of a class."""
    return not isinstance(value, bool) and str(value).strip().lower() not in ("true", "false")


def _lost(what: str) -> tuple[str, Callable[[Any], bool]]:
    return f"records with these keys hold no {what}; write them as messages.", _empty


_JUDGEMENTS = frozenset({"label", "kto_tag"})
_MEDIA = frozenset({"images", "videos", "audios", "image", "video", "audio"})
_MEANINGS: dict[str, tuple[str, Callable[[Any], bool]]] = {  # key: why it cannot pass, and when it says nothing
    **dict.fromkeys(_MEDIA, ("lmf takes text only; leave the record out.", _empty)),
    **dict.fromkeys(("tools", "functions"), _lost("tool declarations")),
    **dict.fromkeys(("tool_calls", "function_call"), _lost("tool calls")),
    **dict.fromkeys(("reasoning_content", "reasoning", "thinking"), _lost("reasoning apart from the reply")),
    "history": _lost("earlier turns"),
    "system": _lost("system message"),
    **dict.fromkeys(("chosen", "rejected"), ("a preference needs both, chosen and rejected.", _empty)),
    "weight": ("only assistant messages have a weight; write it there.", lambda value: value in (None, 1)),
    **dict.fromkeys(_JUDGEMENTS, ("records with these keys are not judged; write them as messages.", _judges_nothing)),
}
