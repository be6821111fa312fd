"""Text of a model on the terminal, while it is written."""

from __future__ import annotations

import shutil
import sys
import time
import unicodedata
from typing import TextIO

from rich.cells import cell_len

CLEAR, DIM, PLAIN = "\033[K", "\033[2m", "\033[0m"  # to the end of the line; faint letters; as before
MARGIN = 4  # columns that stay free, for letters that are wider than we think


class Screen:
    """Shows a reply as it comes; on a terminal with its speed behind it, which the next part of the text covers.

    Args:
        out: Where it is shown; standard output by default.
    """

    def __init__(self, out: TextIO | None = None):
        self.out = out or sys.stdout
        self.terminal = self.out.isatty()
        self.begin()

    def begin(self) -> None:
        """Get ready for a reply, on a line of its own."""
        self._column = self._tokens = 0
        self._began = time.monotonic()

    def show(self, text: str, tokens: int) -> None:
        """Show the next part of a reply.

        Args:
            text: The part.
            tokens: How many tokens the reply has with it.
        """
        self._tokens = tokens
        if not self.terminal:
            self.out.write(text)
            self.out.flush()
            return
        width = shutil.get_terminal_size().columns
        *before, line = text.split("\n")
        self._column = ((0 if before else self._column) + cell_len(line.expandtabs())) % width
        note = f"  {self.rate:.1f} tokens/s"
        fits = self._column + len(note) + MARGIN < width
        back = f"{DIM}{note}{PLAIN}\033[{len(note)}D" if fits else ""
        self.out.write(CLEAR + visible(text) + back)
        self.out.flush()

    def end(self, note: str) -> None:
        """End a reply, on a terminal with a note below it."""
        self.out.write(f"{CLEAR}\n{DIM}[{note}]{PLAIN}\n" if self.terminal else "\n")
        self.out.flush()

    @property
    def rate(self) -> float:
        """Tokens of the reply in a second, from its beginning with what was read for it."""
        return self._tokens / max(time.monotonic() - self._began, 1e-9)


def visible(text: str) -> str:
    """Return a text in which nothing commands a terminal: control characters are escaped."""
    return "".join(f"\\x{ord(c):02x}" if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in text)
