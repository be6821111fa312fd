"""A list of words in a file."""

from __future__ import annotations

from pathlib import Path

from lmf import DataError


def read_words(file: Path) -> dict[str, int]:
    """Return words and how often each occurs, of a file with one on each line and perhaps a tab and a number.

    Raises:
        DataError: It cannot be read, or a line is no such thing.
    """
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    found: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        word, tab, often = line.rstrip("\r").partition("\t")
        if not word.strip():
            if often:
                raise DataError(f"{file}:{number}: there is no word before the tab.")
            continue
        if tab and not (often.isascii() and often.isdigit() and int(often)):
            raise DataError(f"{file}:{number}: {often!r} stands behind the tab; it must be how often the word occurs.")
        found[word] = found.get(word, 0) + (int(often) if tab else 1)
    if not found:
        raise DataError(f"{file} lists no words.")
    return found
