"""Rendered text on the terminal: what of it is learned, and which tokens only the template writes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

LEARNED, CONTROL, DIM = "green", "bold underline", "dim"
KEY = "> is learned, [ ] is a control token, ↵ ends a line"


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a rendering.

    Attributes:
        text: The text.
        control: Whether it is a control token, which only a template can write.
        trained: Whether it is learned.
        weight: How much the loss counts it, if it is learned.
        ids: Its token ids, where it was encoded.
    """

    text: str
    control: bool = False
    trained: bool = False
    weight: float = 1.0
    ids: tuple[int, ...] = ()


def console() -> Console:
    """Return a console that breaks and colours nothing by itself."""
    return Console(highlight=False, soft_wrap=True, markup=False)


def show(spans: Iterable[Span], on: Console) -> None:
    """Print a rendering: what is learned in colour, or without colours the lines of ``plain``."""
    if not coloured(on):
        for line in plain(spans):
            on.print(Text(line))
        return
    for trained, line in _lines(spans):
        row = Text("> " if trained else "  ", style=LEARNED if trained else "")
        for text, control in line:
            style = " ".join(([LEARNED] if trained else []) + ([CONTROL] if control else []))
            row.append(printable(text), style=style)
            if text.endswith("\n"):
                row.append("↵", style=DIM)
        on.print(row)


def show_tokens(spans: Iterable[Span], on: Console) -> None:
    """Print a line for each token: its id and its text."""
    for span in spans:
        learned = span.trained and span.weight != 0
        ids = " ".join(map(str, span.ids))
        text = f"[{span.text}]" if span.control else json.dumps(span.text, ensure_ascii=False)
        on.print(Text(f"{'>' if learned else ' '} {ids:>7}  {printable(text)}", style=LEARNED if learned else ""))


def plain(spans: Iterable[Span]) -> list[str]:
    """Return the lines of a rendering, told apart by signs: see ``KEY``."""
    return [
        ("> " if trained else "  ")
        + "".join(
            (f"[{printable(text)}]" if control else printable(text)) + "↵" * text.endswith("\n")
            for text, control in line
        )
        for trained, line in _lines(spans)
    ]


def coloured(on: Console) -> bool:
    """Whether a console shows colours."""
    return on.color_system is not None and not on.no_color


def printable(text: str) -> str:
    """Return a text without line ends; what a terminal would obey or hide is escaped."""
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text.removesuffix("\n"))
    return "".join(shown)


def _lines(spans: Iterable[Span]) -> Iterator[tuple[bool, list[tuple[str, bool]]]]:
    """Yield lines of text and whether each is learned; where that changes, a line ends too."""
    line: list[tuple[str, bool]] = []
    trained = False
    for span in spans:
        learned = span.trained and span.weight != 0
        if line and learned != trained:
            yield trained, line
            line = []
        trained = learned
        for part in re.findall(r"[^\n]*\n|[^\n]+", span.text):
            if line and not span.control and not line[-1][1]:
                line[-1] = (line[-1][0] + part, False)
            else:
                line.append((part, span.control))
            if part.endswith("\n"):
                yield trained, line
                line = []
    if line:
        yield trained, line
