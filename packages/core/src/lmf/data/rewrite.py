"""Rewrites data: draws, shuffles and parts records, and puts marks and prompts around their texts."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, TypeVar

from ..conversation import Content, Conversation, Message, Preference, Ranking, Unpaired
from ..errors import SHOWN, DataError
from ..specs import DataFormat
from .originals import Original

T = TypeVar("T")

MARKED = ("text", "output", "completion")  # keys of what is learned whole
ASKING = ("input", "prompt")  # keys of what is asked


def shuffled(records: Sequence[T], seed: int) -> list[T]:
    """Return the records in an order that the seed chooses."""
    return random.Random(f"{seed}:shuffle").sample(records, len(records))


def parted(records: Sequence[T], sizes: Sequence[int], seed: int) -> list[list[T]]:
    """Part records; the seed chooses which go where, and in each part they keep their order.

    Args:
        records: The records.
        sizes: How many records each part gets; together as many as there are.
        seed: Chooses.
    """
    owners = shuffled([part for part, size in enumerate(sizes) for _ in range(size)], seed)
    parts: list[list[T]] = [[] for _ in sizes]
    for record, owner in zip(records, owners, strict=True):
        parts[owner].append(record)
    return parts


def sizes_of(count: int, shares: Sequence[Fraction]) -> list[int]:
    """Return how many of ``count`` records are in each share: whole numbers that add up to ``count``.

    What is left after rounding down goes to the shares that lost most by it.

    Args:
        count: How many records there are.
        shares: What each part gets of all; together 1.
    """
    exact = [share * count for share in shares]
    sizes = [int(size) for size in exact]
    lost = sorted(range(len(shares)), key=lambda part: sizes[part] - exact[part])
    for part in lost[: count - sum(sizes)]:
        sizes[part] += 1
    return sizes


def changed(records: Sequence[Original], change: Callable[[Original], T]) -> list[T]:
    """Return what a change makes of each record; of all of them, or an error that names those it cannot change.

    Args:
        records: The records.
        change: Makes the new record; a ``DataError`` of it gets the record's file and line.

    Raises:
        DataError: A record cannot be changed.
    """
    made: list[T] = []
    problems: list[str] = []
    for record in records:
        try:
            made.append(change(record))
        except DataError as error:
            problems.append(f"{record.where}: {error}")
    if len(problems) > 1:
        first = f"; the first {SHOWN}" if len(problems) > SHOWN else ""
        problems = [f"{len(problems):,} records cannot be rewritten{first}:", *problems[:SHOWN]]
    if problems:
        raise DataError("\n".join(problems))
    return made


def converted(record: Original, form: DataFormat) -> dict[str, Any]:
    """Return what a record holds in another format, of which the same would be read.

    Raises:
        DataError: The format is only read, is for another kind of record, or cannot express this one.
    """
    if record.format.data != form.data:
        raise DataError(
            f"the record is a {record.format.data} (format {record.format.name}), "
            f"and the format {form.name} holds a {form.data}."
        )
    if form.write is None:
        raise DataError(f"the format {form.name} is only read, never written.")
    written = form.write(record.data)
    if form.read(written) != record.data:
        raise DataError(f"the format {form.name} cannot express this {form.data}: it would be read differently.")
    return written


def lines_of(record: Original) -> list[dict[str, Any]]:
    """Return a record for each line of a text, without those that are blank.

    Raises:
        DataError: The record has no text, or more than one.
    """
    text = record.object[_only(record.object, ("text",), "text")]
    return [{"text": line.strip()} for line in text.split("\n") if line.strip()]


def end_marked(record: Mapping[str, Any], mark: str) -> dict[str, Any]:
    """Return a record whose text, output or completion ends with a mark.

    Raises:
        DataError: It has none of these, or more than one.
    """
    key = _only(record, MARKED, "end")
    return {**record, key: record[key] + mark}


def prompted(record: Mapping[str, Any], prompt: str) -> dict[str, Any]:
    """Return a record whose input or prompt stands where the prompt has ``{input}``.

    Raises:
        DataError: It has neither, or both.
    """
    key = _only(record, ASKING, "question")
    before, _, after = prompt.partition("{input}")
    return {**record, key: before + record[key] + after}


def conversations(data: Content) -> list[tuple[str, Conversation]]:
    """Return each conversation that a record holds, with what the record says of its last reply."""
    match data:
        case Conversation():
            return [("", data)]
        case Preference(prompt=prompt):
            replies = {"chosen": data.chosen, "rejected": data.rejected}
            return [(name, Conversation(prompt.messages + reply, prompt.tools)) for name, reply in replies.items()]
        case Unpaired(conversation=conversation):
            return [("desirable" if data.desirable else "undesirable", conversation)]
        case Ranking(prompt=prompt, replies=replies):
            names = [f"score {score:g}" for score in data.scores] or [f"rank {i}" for i, _ in enumerate(replies, 1)]
            said = [Conversation((*prompt.messages, Message("assistant", reply)), prompt.tools) for reply in replies]
            return list(zip(names, said, strict=True))
    return []


def _only(record: Mapping[str, Any], keys: Sequence[str], what: str) -> str:
    """Return the one key of these that has a text."""
    found = [key for key in keys if isinstance(record.get(key), str)]
    if len(found) != 1:
        has = f"has {' and '.join(found)}" if found else f"has the keys {', '.join(map(repr, list(record)[:8]))}"
        raise DataError(f"the record {has}; its {what} is looked for as a text in one of the keys {', '.join(keys)}.")
    return found[0]
