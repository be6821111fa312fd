"""What a chat template may make while it is rendered: so much text, so many items, in so much time.

Python has operations that make gigabytes out of a line: ``'a' * 10**9``, a join, a width in a format.
Each is estimated before it runs and counted when it has run.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any, NoReturn

from jinja2.exceptions import SecurityError

SECONDS = 2.0  # for one rendering, and another second for each MB that goes in
CHARACTERS = 1_000_000  # that one rendering may write, and eight times what goes in
MADE = 8  # times as much it may make on the way
NUMBER = 10_000  # largest width, and most bits of a number
ITEM = 8  # an item of a list counts as so many characters

_MANY = re.compile(r"%[^%a-zA-Z]*(\*|\d{5})")  # a large width in a %-format, or one that is an argument
_FIELD = re.compile(r"\{[^{}]*(\{|\d{5})")  # the same in a {}-format
_TEXTS = (str, bytes)
_LISTS = (list, tuple)
_CONTAINERS = (list, tuple, dict)
_END = object()


class Budget:
    """What is left for one rendering.

    Args:
        size: Number of characters that go in.
    """

    def __init__(self, size: int):
        self.deadline = time.monotonic() + SECONDS + size / 1e6
        self.written = CHARACTERS + 8 * size  # characters left to write
        self.made = MADE * self.written  # characters left to make
        self.generated = 0  # generation blocks that ran

    def check(self) -> None:
        """Raise SecurityError if the time is over."""
        if time.monotonic() > self.deadline:
            raise SecurityError(f"it ran for more than {SECONDS:g} seconds")

    def write(self, count: int) -> None:
        """Count characters that are written or kept."""
        self.written -= count
        if self.written < 0:
            raise SecurityError(f"it wrote more than {CHARACTERS:,} characters beyond what it was given")


BUDGET: ContextVar[Budget] = ContextVar("budget")


def watched(items: Iterable[Any]) -> Iterator[Any]:
    """Yield items, and look at the clock before each."""
    budget = BUDGET.get()
    for item in items:
        budget.check()
        yield item


def counted(value: Any) -> Any:
    """Return a value that is written or kept, and count it."""
    BUDGET.get().write(len(value) if isinstance(value, str) else weight(value))
    return value


def made(value: Any) -> Any:
    """Return what an operation made, and count it."""
    budget = BUDGET.get()
    budget.check()
    if isinstance(value, _TEXTS + _CONTAINERS):
        budget.made -= len(value) * (1 if isinstance(value, _TEXTS) else ITEM)
        room(0)
    return value


def room(count: int) -> None:
    """Raise SecurityError if there is no room for so many characters more."""
    if count > BUDGET.get().made:
        refuse()


def refuse() -> NoReturn:
    """Raise SecurityError: an operation would make too much."""
    raise SecurityError("it makes a text, a list or a number without reasonable bounds")


def weight(value: Any, indent: int = 0) -> int:
    """Return about how many characters a value has when it is written, as far as there is room for them.

    A list of lists is small in memory if they are the same one many times; written it is not.
    """
    if isinstance(value, _TEXTS):
        return len(value)
    if not isinstance(value, _CONTAINERS):
        return 0
    limit, total = BUDGET.get().made, 0
    inner: list[Iterator[Any]] = [iter((value,))]
    while inner and total <= limit:
        item = next(inner[-1], _END)
        if item is _END:
            inner.pop()
        elif isinstance(item, _TEXTS):
            total += len(item)
        elif isinstance(item, _CONTAINERS):
            total += len(item) * (ITEM + indent * len(inner))
            if isinstance(item, dict):
                total += sum(len(key) for key in item if isinstance(key, str))
                item = item.values()
            inner.append(iter(item))
    return total


def check_width(*values: Any) -> None:
    """Refuse a number that is a width, a count or a precision beyond reason."""
    for value in values:
        if isinstance(value, int) and abs(value) > NUMBER:
            refuse()


def check_format(form: Any, arguments: Any) -> None:
    """Refuse a format with large widths, or with ones that are arguments."""
    if isinstance(form, _TEXTS):
        text = form if isinstance(form, str) else form.decode("latin-1")
        if _MANY.search(text) or _FIELD.search(text):
            refuse()
        room(len(text) + (text.count("%") + text.count("{")) * weight(arguments))


def check_replace(text: Any, old: Any, new: Any) -> None:
    """Refuse a replacement that explodes."""
    if isinstance(text, str) and isinstance(old, str):
        room(len(text) + text.count(old) * (len(new) if isinstance(new, str) else weight(new)))


def check_join(separator: Any, parts: list[Any]) -> None:
    """Refuse to join more than there is room for."""
    room(weight(parts) + len(parts) * weight(separator))


def check_operation(operator: str, left: Any, right: Any) -> None:
    """Refuse an operation of two values whose result has no room."""
    if operator == "%":
        check_format(left, right)
    elif operator == "+" and isinstance(left, _TEXTS) and isinstance(right, _TEXTS):
        room(len(left) + len(right))
    elif operator == "+" and isinstance(left, _LISTS) and isinstance(right, _LISTS):
        room(ITEM * (len(left) + len(right)))
    elif operator == "*":
        for items, count in ((left, right), (right, left)):
            if isinstance(items, _TEXTS + _LISTS) and isinstance(count, int):
                room(len(items) * count * (1 if isinstance(items, _TEXTS) else ITEM))
        if isinstance(left, int) and isinstance(right, int):
            check_width(left.bit_length() + right.bit_length())
    elif operator == "**" and isinstance(right, int | float):
        bits = left.bit_length() if isinstance(left, int) else 1
        if bits * abs(right) > NUMBER:
            refuse()


def comparable(value: Any) -> Any:
    """Return a value that is to be compared, unless that would take for ever."""
    if isinstance(value, _CONTAINERS):
        room(weight(value))
    return value
