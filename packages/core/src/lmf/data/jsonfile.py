"""JSON and JSON Lines files as values with line numbers; what is wrong in them is reported, never skipped."""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError, did_you_mean
from .textfile import BLANK, Piped, Report, lines, pieces

# The types of LMFlow's files that can be read, and what each of their instances holds.
INSTANCES = {
    "text_only": ("text",),
    "text2text": ("input", "output"),
    "conversation": ("messages",),
    "paired_conversation": ("chosen", "rejected"),
    "paired_text_to_text": ("prompt", "chosen", "rejected"),
    "text_to_textlist": ("input", "output"),
    "text_to_scored_textlist": ("input", "output"),
}
_UNREADABLE = {  # those that cannot, and why
    "float_only": "it holds bare numbers, and no objective learns from those.",
    "image_text": "it holds images, and lmf learns from text only.",
}


@dataclass(frozen=True, slots=True)
class Foreign:
    """A value in a table that JSON cannot hold, such as a date. It may stand where nobody looks at it."""

    type: str


def read_lines(path: Path, report: Report, piped: Piped | None = None) -> Iterator[tuple[int, Any]]:
    """Yield (line, value) of a JSON Lines file.

    Args:
        path: The file, or what to call the stream.
        report: Is told each line that cannot be used, and why.
        piped: What to read instead of a file.

    Raises:
        DataError: The whole file is something else.
    """
    decoder = _Decoder()
    for count, (line, ended) in enumerate(lines(path, report, piped)):
        text = ended.rstrip(BLANK)
        if count == 0:
            _check_first_line(path, text.lstrip(BLANK))
        try:
            value, end, fault = decoder.decode(text, len(text) - len(text.lstrip(BLANK)))
            if text[end:]:
                raise _Malformed(end, "more follows the record; each record stands on a line of its own")
        except _Malformed as error:
            report(line, error.explain(text, error.position + 1))
            continue
        if fault:
            report(line, fault)
        else:
            yield line, value


def read_json(path: Path, report: Report) -> Iterator[tuple[int, Any]]:
    """Yield (line, value) of each record of an array, of one record, or of the instances of an LMFlow file.

    Args:
        path: The file.
        report: Is told each record that cannot be used, and why.

    Raises:
        DataError: The file is not JSON, or an LMFlow file of a type that cannot be read.
    """
    scanner = _Scanner(path, pieces(path), report)
    try:
        yield from scanner.records()
    except _Malformed as error:
        raise DataError(f"{path}:{scanner.explain(error)}") from None


def parse(text: str) -> Any:
    """Return the value of one JSON text.

    Raises:
        DataError: It is not JSON, or means nothing certain.
    """
    text = text.strip(BLANK)
    try:
        value, end, fault = _Decoder().decode(text, 0)
        if text[end:]:
            raise _Malformed(end, "more follows the value")
    except _Malformed as error:
        column = error.position - text.rfind("\n", 0, error.position)
        raise DataError(error.explain(text, column)) from None
    if fault:
        raise DataError(f"not valid JSON: {fault}")
    return value


def unusable(value: Any) -> str:
    """Return why a value from elsewhere could not have come from a JSON file, or ""."""
    return next(filter(None, map(_unusable, _leaves(value))), "")


def noun(value: Any) -> str:
    """Return what to call a JSON value in a sentence, cut to a line."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int() | float():
            return f"the number {reprlib.repr(value)}"
        case str():
            return f"the text {reprlib.repr(value)}"
        case list():
            return "a list"
        case Foreign(kind):
            return f"a value of the type {kind}"
    return "an object"


def _check_first_line(path: Path, text: str) -> None:
    """Say once what the file is instead, not on every line that it is no record."""
    if text.startswith("<"):
        raise DataError(_WEB_PAGE.format(path))
    if text.startswith("["):
        raise DataError(f"{path} holds a JSON array, not a record on each line; rename it to .json.")
    if text == "{":
        raise DataError(f"{path}: the first record spans several lines; JSON Lines has each on one line.")


class _Scanner:
    """Reads the records of one JSON text, keeping count of the lines, and no more of the text than it needs."""

    def __init__(self, path: Path, pieces: Iterator[str], report: Report):
        self._path = path
        self._pieces = pieces
        self._report = report
        self._decoder = _Decoder()
        self._text = ""  # what is left of the pieces that have been read
        self._position = 0
        self._line, self._counted = 1, 0  # the line on which the position _counted is
        self._before = 0  # characters of the first line that are no longer in the text

    def records(self) -> Iterator[tuple[int, Any]]:
        start = self._next()
        if start == "<":
            raise DataError(_WEB_PAGE.format(self._path))
        if start == "[":
            yield from self._array()
        elif start == "{":
            yield from self._object()
        elif start:
            raise _Malformed(self._position, "Expecting an array or an object")
        if self._next() == "{":
            where = f"{self._path}:{self._count()}"
            raise DataError(f"{where}: a second record follows the first, as in JSON Lines; rename the file to .jsonl.")
        if self._next():
            raise _Malformed(self._position, "more follows the end of the data")

    def _array(self) -> Iterator[tuple[int, Any]]:
        for _ in self._items("]"):
            line = self._count()
            value, fault = self._value()
            if fault:
                self._report(line, fault)
            else:
                yield line, value

    def _object(self) -> Iterator[tuple[int, Any]]:
        """Yield the instances of an LMFlow file, otherwise the object itself: it is the one record."""
        start = self._count()
        record: dict[str, Any] = {}
        faults: list[str] = []
        held: list[tuple[int, Any]] = []
        lmflow = False
        for _ in self._items("}"):
            if self._next() != '"':
                raise _Malformed(self._position, "Expecting a key in double quotes")
            key, fault = self._value()
            faults += [fault, _twice(key) if key in record else ""]
            self._take(":")
            if key != "instances" or self._next() != "[":
                record[key], fault = self._value()
                faults.append(fault)
                continue
            record[key], lmflow = [], True
            if "type" in record:
                yield from self._instances(record["type"], self._array())
            else:
                held = list(self._array())
        fault = next(filter(None, faults), "")
        if fault and lmflow:
            raise DataError(f"{self._path}:{start}: {fault}")
        if fault:
            self._report(start, fault)
        elif not lmflow:
            yield start, record
        elif held or "type" not in record:
            yield from self._instances(record.get("type"), held)

    def _instances(self, kind: Any, instances: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
        keys = INSTANCES.get(str(kind))
        if keys is None:
            known = f"supported are {', '.join(INSTANCES)}.{did_you_mean(str(kind), INSTANCES)}"
            why = _UNREADABLE.get(str(kind), known)
            raise DataError(f"{self._path}: LMFlow's data type {reprlib.repr(kind)} is not supported; {why}")
        for line, value in instances:
            missing = [key for key in keys if not isinstance(value, dict) or key not in value]
            if missing:
                self._report(line, f"the file is of the type {kind!r}, but this instance has no {missing[0]!r}.")
            else:
                yield line, value

    def _items(self, close: str) -> Iterator[None]:
        """Stop at each item of an array or object, for the caller to read it, and go on behind ``close``."""
        self._position += 1
        if self._next() != close:
            yield
            while self._next() != close:
                self._take(",")
                if self._next() == close:
                    raise _Malformed(self._position, "Expecting another item")
                yield
        self._position += 1

    def _value(self) -> tuple[Any, str]:
        self._next()
        while True:
            try:
                value, end, fault = self._decoder.decode(self._text, self._position)
            except _Malformed:
                if not self._more():
                    raise
            else:
                if end < len(self._text) or not self._more():  # a number at the end may go on
                    self._position = end
                    return value, fault

    def _take(self, mark: str) -> None:
        if self._next() != mark:
            raise _Malformed(self._position, f"Expecting {mark!r}")
        self._position += 1

    def _next(self) -> str:
        """Skip white space and return the character there, or "" at the end."""
        while not (mark := _MARK.search(self._text, self._position)):
            self._position = len(self._text)
            if not self._more():
                return ""
        self._position = mark.start()
        return mark[0]

    def _more(self) -> bool:
        """Read on, at least as much again as is left, and forget what lies behind; return whether there was more."""
        piece = next(self._pieces, "")
        if not piece:
            return False
        self._count()
        _, self._before = self._place(self._position)
        left = len(self._text) - self._position
        parts = [self._text[self._position :], piece]
        while (left := left - len(piece)) > 0 and (piece := next(self._pieces, "")):
            parts.append(piece)
        self._text = "".join(parts)
        self._position = self._counted = 0
        return True

    def _count(self) -> int:
        """Return the line of the position, counted from 1."""
        self._line += self._text.count("\n", self._counted, self._position)
        self._counted = self._position
        return self._line

    def _place(self, position: int) -> tuple[int, int]:
        """Return the line of a position, counted from 1, and how many characters of that line stand before it."""
        start = self._text.rfind("\n", 0, position)
        line = self._line + self._text.count("\n", self._counted, position)
        return line, position - start - 1 if start >= 0 else self._before + position

    def explain(self, error: _Malformed) -> str:
        """Return the line of an error, its column and its cause."""
        line, before = self._place(error.position)
        return f"{line}: {error.explain(self._text, before + 1)}"


class _Decoder:
    """Decodes JSON and minds what the ``json`` module lets pass."""

    def __init__(self) -> None:
        self._json = json.JSONDecoder(
            object_pairs_hook=self._object, parse_float=self._float, parse_constant=self._constant
        )
        self._faults: list[str] = []

    def decode(self, text: str, start: int) -> tuple[Any, int, str]:
        """Return the value at ``start``, where it ends, and why it cannot be used, or "".

        Raises:
            _Malformed: It is not JSON.
        """
        self._faults.clear()
        try:
            value, end = self._json.raw_decode(text, start)
        except json.JSONDecodeError as error:
            cut = error.msg.startswith("Unterminated string") or _CUT.fullmatch(text, error.pos)
            raise _Malformed(len(text) if cut else error.pos, error.msg.removesuffix(" starting at")) from None
        except RecursionError:
            raise _Malformed(start, "the value is nested too deeply") from None
        except ValueError:  # Python converts no more than 4300 digits
            raise _Malformed(start, "a number in the value has too many digits") from None
        if _ESCAPES.search(text, start, end):
            self._faults += map(_unusable, _leaves(value))
        return value, end, next(filter(None, self._faults), "")

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            self._faults.append(_twice(max(counts, key=counts.__getitem__)))
        return value

    def _float(self, digits: str) -> float:
        number = float(digits)
        if math.isinf(number):
            self._faults.append(f"the number {reprlib.repr(digits)[1:-1]} is too large.")
        return number

    def _constant(self, name: str) -> None:
        self._faults.append(f"{name} is not JSON; write null or a number.")


class _Malformed(Exception):
    """The text is not JSON."""

    def __init__(self, position: int, cause: str):
        super().__init__(cause)
        self.position = position  # characters from the start of the text

    def explain(self, text: str, column: int) -> str:
        """Return the cause, with its column, counted from 1."""
        cause = str(self)
        found = text[self.position : self.position + 1]
        if cause.startswith("Invalid control character"):
            cause = f"a string holds the raw control character {found!r}; write it as an escape"
        elif not text[self.position :].strip(BLANK):
            cause = f"it ends in the middle of a value ({cause})"
        elif found == "\ufeff":
            cause = "a byte order mark stands inside the file; remove it"
        elif found in ("]", "}") and cause.startswith("Expecting"):
            cause = f"something is missing before {found!r}, or a comma is too many"
        return f"not valid JSON at column {column}: {cause}."


def _twice(key: str) -> str:
    return f"the key {reprlib.repr(key)} stands twice in one object; keep one of them."


def _leaves(value: Any) -> Iterator[str | float]:
    """Yield every string and every fraction in a value, keys too."""
    rest = [value]
    while rest:
        item = rest.pop()
        if isinstance(item, str | float):
            yield item
        elif isinstance(item, list):
            rest += item
        elif isinstance(item, dict):
            rest += [*item, *item.values()]


def _unusable(leaf: str | float) -> str:
    if not isinstance(leaf, str):
        return "" if math.isfinite(leaf) else f"{leaf} is not a number that JSON has; write null or a number."
    if "\0" in leaf:
        return r"a string holds the character NUL (\u0000); remove it."
    half = _HALF.search(leaf)
    return f"a string holds \\u{ord(half[0]):04x}, half of a surrogate pair; it is no character." if half else ""


_MARK = re.compile(f"[^{BLANK}]")
_ESCAPES = re.compile(r"\\u(0000|[dD][89a-fA-F])")  # what can put NUL or half a pair into a string
# what is left over where the text ends within a literal, a number or an escape
_CUT = re.compile(r"-|tr?u?|fa?l?s?|nu?l?|\.|[eE][-+]?|\\?u[0-9a-fA-F]{0,4}")
_HALF = re.compile("[\ud800-\udfff]")
_WEB_PAGE = "{} starts with '<': it is a web page (HTML or XML), not JSON; fetch the data themselves."
