"""Every error that lmf raises on purpose.

The command line prints the message of an ``LmfError`` without a traceback and exits
with its ``exit_code``; any other exception is a bug and keeps its traceback.
"""

import difflib
from collections.abc import Iterable, Sequence

SHOWN = 20  # problems that one message tells in words; the others are counted


def several(problems: Sequence[str]) -> str:
    """Return the text of one error for several problems."""
    more = f"\n... and {len(problems) - SHOWN:,} more" if len(problems) > SHOWN else ""
    return "\n".join(problems[:SHOWN]) + more


class LmfError(Exception):
    """The caller can fix this. The message says what is wrong, where, and what to do."""

    exit_code = 1


class ConfigError(LmfError):
    """A setting has a wrong name, type or value."""

    exit_code = 2


class PluginError(LmfError):
    """A plugin breaks the contract in ``hookspecs.py``, or two plugins claim one name."""

    exit_code = 3


class DataError(LmfError):
    """The data cannot be read, or hold nothing to learn from."""

    exit_code = 4


class Interrupted(LmfError):
    """A signal ended the run, after what was learned had been saved."""

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.exit_code = 128 + signal


class UnknownName(ConfigError):
    """Nothing of this kind is installed under this name."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hints: Iterable[str] = ()):
        known = sorted(known)
        lines = [f"No {kind} is called {name!r}.{did_you_mean(name, known)}"]
        lines.append(f"Installed: {', '.join(known) or 'none'}.")
        super().__init__("\n".join([*lines, *hints]))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the nearest known name, or nothing."""
    folded = {each.casefold(): each for each in known}
    close = difflib.get_close_matches(name.casefold(), list(folded), n=5)
    nearest = min(close, key=lambda each: _slips(name.casefold(), each), default=None)
    return f" Did you mean {folded[nearest]!r}?" if nearest else ""


def _slips(typed: str, meant: str) -> int:
    """Return how many letters are wrong, missing, too many, or swapped with their neighbour."""
    before: list[int] = []
    row = list(range(len(meant) + 1))
    for i, letter in enumerate(typed, 1):
        older, before, row = before, row, [i]
        for j, wanted in enumerate(meant, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (letter != wanted)))
            if i > 1 and j > 1 and letter == meant[j - 2] and typed[i - 2] == wanted:
                row[j] = min(row[j], older[j - 2] + 1)
    return row[-1]
