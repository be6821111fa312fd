"""From data of any kind to clean text."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmf import DataError, Plugins, option
from lmf.data.mixture import columns_of
from lmf.data.originals import Original, read_originals
from lmf.data.rewrite import conversations

KEPT = "\n\t"  # control characters that are text
BREAKS = str.maketrans(dict.fromkeys("\r\v\f\x1c\x1d\x1e\x85\u2028\u2029", "\n"))  # that end lines


@dataclass(frozen=True, kw_only=True, slots=True)
class Texts:
    """Where text comes from."""

    data: tuple[str, ...] = option(help="Files, folders or data set names; give it again for more.")
    format: str | None = option(None, "Data format of all records; by default the keys of each tell it.")
    columns: tuple[str, ...] = option((), "Other names of keys, as KEY=COLUMN: text=body.", commas=True)


@dataclass(slots=True)
class Cleaned:
    """What became of data.

    Attributes:
        records: How many records were read.
        texts: How many texts were kept.
        repeated: Texts that were there before and were left out.
        empty: Texts of which nothing was left.
        characters: Characters that were kept.
    """

    records: int = 0
    texts: int = 0
    repeated: int = 0
    empty: int = 0
    characters: int = 0


def read_texts(source: Texts, plugins: Plugins) -> list[str]:
    """Return the texts of data as they stand, each once and none blank.

    Raises:
        DataError: There is none, or a record cannot be used.
    """
    return list(dict.fromkeys(text for text in _texts(_records(source, plugins)) if text.strip())) or _nothing(source)


def clean_texts(source: Texts, plugins: Plugins) -> tuple[list[str], Cleaned]:
    """Return the texts of data, each once and clean, and what became of the data.

    Raises:
        DataError: There is none, or a record cannot be used.
    """
    records = _records(source, plugins)
    account = Cleaned(records=len(records))
    seen: set[bytes] = set()
    kept: list[str] = []
    for text in map(clean, _texts(records)):
        key = hashlib.sha256(text.encode()).digest()
        account.empty += not text
        account.repeated += key in seen and bool(text)
        if text and key not in seen:
            seen.add(key)
            kept.append(text)
    account.texts, account.characters = len(kept), sum(map(len, kept))
    return kept or _nothing(source), account


def clean(text: str) -> str:
    """Return a text in composed form (NFC), without control characters, spaces at ends of lines, and blank lines."""
    lines = text.replace("\r\n", "\n").translate(BREAKS)
    kept = "".join(c for c in lines if c in KEPT or unicodedata.category(c) not in ("Cc", "Cs"))
    return "\n".join(filter(None, (line.rstrip() for line in unicodedata.normalize("NFC", kept).split("\n"))))


def write_texts(texts: Iterable[str], file: Path, plain: bool) -> None:
    """Write texts: plain with a blank line between them, or as JSON Lines."""
    with file.open("w", encoding="utf-8", newline="\n") as stream:
        if plain:
            stream.write("\n\n".join(texts) + "\n")
        else:
            stream.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)


def _records(source: Texts, plugins: Plugins) -> list[Original]:
    return read_originals(source.data, plugins, source.format, columns_of(source.columns, plugins)).records


def _texts(records: Iterable[Original]) -> Iterator[str]:
    """Yield what records say: the text itself, or every turn of a conversation."""
    for record in records:
        data: Any = record.data
        if isinstance(data, str):
            yield data
        for _, conversation in conversations(data):
            yield from (message.content for message in conversation.messages)


def _nothing(source: Texts) -> list[str]:
    raise DataError(f"{', '.join(source.data)} holds no text.")
