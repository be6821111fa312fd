"""Records that are read while they are learned, for data that need not fit into memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from ..conversation import Kind, Record
from ..errors import SHOWN, ConfigError, DataError
from ..plugins import Plugins
from ..settings import RunSettings
from .inputs import Input, find
from .mixture import check_mix, columns_of, systems, weighted, with_system
from .reading import DataFile, Formats, open_values, recognised
from .textfile import STDIN, sampled_sha256


class RecordStream:
    """Reads ``--data`` anew for every pass over them.

    Args:
        settings: The settings of the run.
        kind: What the objective learns from.
        plugins: Where data sets and formats are looked up.

    Attributes:
        sources: The files; of each, the format of its first record.
        bad: How many bad records were left out so far, over all passes.
        first_bad: The first of them: each with its file, its line and what is wrong.

    Raises:
        ConfigError: The settings ask for what needs all records at once.
        DataError: A name is unknown, or a file has no first record that can be used.
    """

    def __init__(self, settings: RunSettings, kind: Kind, plugins: Plugins):
        _check(settings)
        names, weights = weighted(settings.data)
        check_mix(settings, weights)
        self._shares = [Fraction(weight) for weight in weights] or [Fraction(1)] * len(names)
        self._systems = systems(settings, kind, len(names))
        self._mix = settings.mix
        self._skip = settings.on_bad_record == "skip"
        self._formats = Formats(kind, plugins, settings.format)
        columns = columns_of(settings.columns, plugins)
        found = [find(name, plugins) for name in names]
        self._inputs = [[replace(i, columns=columns) if columns else i for i in inputs] for inputs in found]
        self.bad = 0
        self.first_bad: list[str] = []
        self.sources: list[DataFile] = []
        for inputs, weight in zip(self._inputs, weights or [""] * len(names), strict=True):
            for item in inputs:
                if item.path == STDIN:
                    raise ConfigError("--streaming reads the data once for every pass; standard input ends after one.")
                _, form = next(self._read(item))
                self.sources.append(DataFile(item.path, form, None, _fingerprint(item.path), weight))
        self.bad = 0
        self.first_bad.clear()

    def records(self) -> Iterator[Record]:
        """Yield the records of one pass: all of all data, or shares of them until the first or until all are used up.

        Raises:
            DataError: A record cannot be used and none is to be left out, or a file cannot be read.
        """
        if self._mix == "concat":
            for number in range(len(self._inputs)):
                yield from self._source(number)
            return
        readers = [self._source(number) for number in range(len(self._inputs))]
        drawn, used_up = Counter[int](), set[int]()
        while True:
            # the one that is furthest behind its share, so that what is drawn is spread evenly
            number = min(range(len(readers)), key=lambda i: ((drawn[i] + Fraction(1, 2)) / self._shares[i], i))
            record = next(readers[number], None)
            if record is None:
                used_up.add(number)
                if self._mix == "interleave-first" or len(used_up) == len(readers):
                    return
                readers[number] = self._source(number)
                record = next(readers[number])
            drawn[number] += 1
            yield record

    def _source(self, number: int) -> Iterator[Record]:
        """Yield the records of one of the data, each with its system message."""
        for item in self._inputs[number]:
            for record, _ in self._read(item):
                yield with_system(record, self._systems[number]) if self._systems else record

    def _read(self, item: Input) -> Iterator[tuple[Record, str]]:
        """Yield the records of one file, and the names of their formats."""

        first = ""

        def report(line: int, problem: str) -> None:
            nonlocal first
            bad = f"{item.path}:{line}: {problem}"
            if not self._skip:
                raise DataError("\n".join([bad, *self._formats.hints()]))
            first = first or bad
            self.bad += 1
            if len(self.first_bad) < SHOWN and bad not in self.first_bad:
                self.first_bad.append(bad)

        some = False
        for record, form in recognised(item, open_values(item, report)[0], self._formats, report):
            some = True
            yield record, form.name
        if not some:
            raise DataError(
                f"{item.path} holds no record that can be used" + (f"; the first problem:\n{first}" if first else ".")
            )


def _check(settings: RunSettings) -> None:
    if settings.steps is None:
        raise ConfigError("--streaming: the data may have no end; say how long to train: --steps.")
    for name, asked in (("dedup", settings.dedup), ("max-samples", settings.max_samples)):
        if asked:
            raise ConfigError(f"--streaming and --{name}: that needs all records at once; prepare the data with it.")
    if settings.eval_split:
        raise ConfigError("--streaming and --eval-split: records are never all there to choose from; give --eval-data.")


def _fingerprint(path: Path) -> str:
    return sampled_sha256(path) if path.exists() else ""
