"""Several sources become one list of records: how many of each, in which order, without what stands twice."""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import chain, repeat
from typing import TypeVar

from ..conversation import Conversation, Kind, Message, Preference, Ranking, Record, Unpaired
from ..errors import ConfigError, DataError
from ..formats.datasetinfo import KEYS, parse_columns
from ..plugins import Plugins
from ..settings import RunSettings
from .inputs import exists
from .reading import Data, joined, read_each
from .records import Records, joined_records

T = TypeVar("T")


def training_data(settings: RunSettings, kind: Kind, plugins: Plugins) -> Data:
    """Read ``--data`` and mix it as the settings say.

    Raises:
        ConfigError: The settings contradict each other.
        DataError: The data cannot be read, or nothing of one of them would be learned.
    """
    names, weights = weighted(settings.data)
    check_mix(settings, weights)
    parts = _read(names, settings, kind, plugins)
    sources, notes = [part.records for part in parts], []
    if settings.dedup:
        before = sum(map(len, sources))
        sources = unique(sources)
        notes.append(f"{before - sum(map(len, sources)):,} duplicates left out")
    if settings.mix == "concat":
        records = joined_records(sources)
    else:
        gone = next((name for name, source in zip(names, sources, strict=True) if not source), None)
        if gone:
            raise DataError(f"--mix {settings.mix}: all records of {gone} stand in other data; leave it out.")
        shares = list(map(Fraction, weights or ["1"] * len(names)))
        counts = draws([len(source) for source in sources], shares, repeat=settings.mix == "interleave-all")
        for name, source, count in zip(names, sources, counts, strict=True):
            if not count:
                raise DataError(f"--mix {settings.mix}: no record of {name} would be drawn; give it a larger weight.")
            notes.append(
                f"{name}: {count:,} records drawn of {len(source):,}, {count / sum(counts):.1%} of the mixture"
            )
        records = Records(interleave(sources, counts, settings.seed))
    if settings.max_samples and settings.max_samples < len(records):
        notes.append(f"{settings.max_samples:,} of {len(records):,} records chosen by --seed {settings.seed}")
        records = Records(sample(records, settings.max_samples, settings.seed))
    data = joined([_weighing(part, weight) for part, weight in zip(parts, weights or [""] * len(parts), strict=True)])
    return replace(data, records=records, notes=[*data.notes, *notes])


def held_out_data(settings: RunSettings, kind: Kind, plugins: Plugins) -> Data:
    """Read ``--eval-data``; it is neither mixed nor shortened.

    Raises:
        DataError: The data cannot be read.
    """
    return joined(_read(settings.eval_data, settings, kind, plugins)) if settings.eval_data else Data(Records(), [])


def weighted(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take the weights off names such as ``a.jsonl:0.7``; what exists under the whole name has none.

    Returns:
        The names, and their weights as they are written; none if no name has one.

    Raises:
        ConfigError: Only some of the names have a weight, or one is 0.
    """
    found = [None if exists(name) else _WEIGHTED.fullmatch(name) for name in names]
    if not any(found):
        return list(names), []
    for name, match in zip(names, found, strict=True):
        if match is None:
            raise ConfigError(f"--data {name} has no weight and others have one; write {name}:WEIGHT, or none at all.")
        if not Fraction(match["weight"]):
            raise ConfigError(f"--data {name}: the weight is 0; it must be greater, or leave the data out.")
    matches = [match for match in found if match]
    return [match["name"] for match in matches], [match["weight"] for match in matches]


def draws(lengths: Sequence[int], weights: Sequence[Fraction], *, repeat: bool) -> list[int]:
    """Return how many records to draw from each source for shares in proportion to the weights.

    Without ``repeat`` they are as many as can be until a source has no more, rounded down; with
    it, as many as it takes until every source was drawn from whole, rounded up.

    Args:
        lengths: How many records each source has.
        weights: The weight of each source, greater than 0.
        repeat: Whether the records of a source may be drawn again.
    """
    sizes = [length / weight for length, weight in zip(lengths, weights, strict=True)]
    if repeat:
        return [math.ceil(max(sizes) * weight) for weight in weights]
    return [math.floor(min(sizes) * weight) for weight in weights]


def interleave(sources: Sequence[Sequence[T]], counts: Sequence[int], seed: int) -> Iterator[T]:
    """Draw from each source, and spread evenly what is drawn.

    A source is drawn from whole as often as its count allows, and then the seed chooses the
    rest. Each time its records keep their order.

    Args:
        sources: The records of each source.
        counts: How many to draw from each.
        seed: Chooses the records.
    """
    drawn: list[Iterator[T]] = []
    places: list[tuple[float, int]] = []
    for number, (source, count) in enumerate(zip(sources, counts, strict=True)):
        times, rest = divmod(count, len(source))
        drawn.append(chain(chain.from_iterable(repeat(source, times)), sample(source, rest, seed, number)))
        places += [((place + 0.5) / count, number) for place in range(count)]
    places.sort()
    return (next(drawn[number]) for _, number in places)


def sample(records: Sequence[T], count: int, seed: int, source: int = 0) -> Iterator[T]:
    """Yield some of the records, in their order.

    Args:
        records: The records.
        count: How many.
        seed: Chooses them.
        source: Chooses others with the same seed.
    """
    chosen = set(random.Random(f"{seed}:mix:{source}").sample(range(len(records)), count))
    return (record for place, record in enumerate(records) if place in chosen)


def unique(sources: Sequence[Iterable[Record]]) -> list[Records]:
    """Return the sources without records that hold exactly what an earlier one holds, wherever that stands."""
    seen: set[bytes] = set()

    def new(record: Record) -> bool:
        # the keys and values of tools are in it in their order; the hash takes less room than the text
        digest = hashlib.sha256(repr(record.data).encode()).digest()
        known = digest in seen
        seen.add(digest)
        return not known

    return [Records(filter(new, source)) for source in sources]


def with_system(record: Record, text: str) -> Record:
    """Return a record whose conversation begins with a system message, its own if it has one."""
    match record.data:
        case Conversation() as conversation:
            return replace(record, data=_with_system(conversation, text))
        case Preference(prompt=prompt) | Ranking(prompt=prompt) as data:
            return replace(record, data=replace(data, prompt=_with_system(prompt, text)))
        case Unpaired(conversation=conversation) as data:
            return replace(record, data=replace(data, conversation=_with_system(conversation, text)))
    return record


def _read(names: Sequence[str], settings: RunSettings, kind: Kind, plugins: Plugins) -> list[Data]:
    """Read what each name stands for, and give it its system message."""
    texts = systems(settings, kind, len(names))
    parts = read_each(
        names,
        kind,
        plugins,
        format=settings.format,
        columns=columns_of(settings.columns, plugins),
        on_bad_record=settings.on_bad_record,
    )
    if not texts:
        return parts
    return [
        replace(part, records=Records(with_system(record, text) for record in part.records.given_away()))
        for part, text in zip(parts, texts, strict=True)
    ]


def columns_of(given: Sequence[str], plugins: Plugins) -> dict[str, str]:
    """Return the column for each key that ``--columns`` names.

    Raises:
        ConfigError: It names a key that no format has.
    """
    if not given:
        return {}
    examples = [json.loads(form.example) for _, form in plugins.formats.all()]
    return parse_columns(",".join(given), KEYS.union(*examples))


def systems(settings: RunSettings, kind: Kind, count: int) -> tuple[str, ...]:
    """Return the system message for each of so many data, or nothing.

    Raises:
        ConfigError: ``--system`` does not fit them.
    """
    if settings.system and kind == "text":
        raise ConfigError("--system: texts are learned here, and a text has no system message.")
    if len(settings.system) > 1 and len(settings.system) != len(settings.data):
        raise ConfigError(
            f"--system is given {len(settings.system)} times and --data {len(settings.data)} times; "
            "give one for all, or one for each."
        )
    if len(settings.system) > 1 and settings.eval_data:
        raise ConfigError(
            "--system is given for each of --data, so --eval-data would have none; "
            "give one for all, or use --eval-split."
        )
    return settings.system * count if len(settings.system) == 1 else settings.system


def _weighing(part: Data, weight: str) -> Data:
    return replace(part, sources=[replace(source, weight=weight) for source in part.sources])


def _with_system(conversation: Conversation, text: str) -> Conversation:
    if conversation.messages and conversation.messages[0].role == "system":
        return conversation
    return replace(conversation, messages=(Message("system", text), *conversation.messages))


def check_mix(settings: RunSettings, weights: Sequence[str]) -> None:
    """Raise ConfigError if ``--mix`` contradicts the weights or the other settings."""
    if weights and settings.mix == "concat":
        raise ConfigError(
            "--data gives weights, and --mix concat takes all records of all data. Choose --mix interleave-first, "
            "which ends with the first data that are used up, or --mix interleave-all, which repeats the shorter ones."
        )
    if settings.mix == "interleave-all" and settings.eval_split:
        raise ConfigError(
            "--mix interleave-all repeats records, so --eval-split would hold out some that are learned as well; "
            "give --eval-data instead."
        )


_WEIGHTED = re.compile(r"(?P<name>.+):(?P<weight>\d+(\.\d+)?|\.\d+)", re.DOTALL)
