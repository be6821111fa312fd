"""Training data: from files to records, with every bad record named in one error."""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ..conversation import Kind, Record
from ..errors import SHOWN, ConfigError, DataError, did_you_mean
from ..formats.datasetinfo import rename
from ..plugins import Plugins
from ..specs import DataFormat
from .hub import HUB, read_hub
from .inputs import Input, find
from .jsonfile import noun, read_json, read_lines
from .records import Records, joined_records
from .tables import read_arrow, read_csv, read_parquet
from .textfile import STDIN, Report, sha256, standard_input, whole


@dataclass(frozen=True, slots=True)
class DataFile:
    """One file that was read.

    Attributes:
        path: The file.
        format: The names of its records' formats; nearly always one.
        records: How many records it holds; None if it is streamed.
        sha256: The SHA-256 of its bytes, in hexadecimal; of a data set of the hub, that of its
            records; of a file that is streamed, that of its size, its first and its last MiB.
        weight: The weight that its data were given, as it was written; "" where there is none.
    """

    path: Path
    format: str
    records: int | None
    sha256: str
    weight: str = ""


@dataclass(frozen=True, slots=True)
class Data:
    """Records in the order of the files, and the files.

    Attributes:
        records: What is learned from.
        sources: What was read.
        skipped: The bad records that were left out: each with its file, its line and what is wrong.
        notes: What a user should know about how the records came together, a line each.
    """

    records: Records
    sources: list[DataFile]
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read(names: Sequence[str], kind: Kind, plugins: Plugins, **how: Any) -> Data:
    """Read training data as one list; the arguments are those of ``read_each``."""
    return joined(read_each(names, kind, plugins, **how))


def joined(parts: Sequence[Data]) -> Data:
    """Return several data as one, in order."""
    return Data(
        joined_records([part.records for part in parts]),
        [source for part in parts for source in part.sources],
        [problem for part in parts for problem in part.skipped],
        [note for part in parts for note in part.notes],
    )


def read_each(
    names: Sequence[str],
    kind: Kind | None,
    plugins: Plugins,
    *,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    on_bad_record: Literal["error", "skip"] = "error",
) -> list[Data]:
    """Read what each name stands for; all of it, or nothing and an error that names every problem.

    Args:
        names: As ``inputs.find`` takes them. What is named twice is read twice.
        kind: What the objective learns from; None for records of every kind.
        plugins: Where data sets and formats are looked up.
        format: The name of the format of all records; by default their keys tell it.
        columns: The column of the files for each key of the format; by default records are taken
            as they are, or as their data set describes them.
        on_bad_record: Whether a bad record is an error or is left out. A file of which nothing can be
            used is always an error.

    Raises:
        DataError: A name is unknown or has two meanings, or a file or a record cannot be used.
        ConfigError: No format has this name, or it does not give what is learned from.
        PluginError: Two packages define a data set of this name.
    """
    found = [find(name, plugins) for name in names]
    if not found:
        raise DataError("No data are named; name a file, a folder or a data set.")
    if sum(item.path == STDIN for items in found for item in items) > 1:
        raise DataError("'-' is named twice; standard input can be read only once.")
    problems = _Problems()
    formats = Formats(kind, plugins, format)
    parts = []
    for name, items in zip(names, found, strict=True):
        parts.append(part := Data(Records(), []))
        for item in items:
            try:
                _read(replace(item, columns=columns) if columns else item, formats, part, problems, on_bad_record)
            except DataError as error:
                problems.add(str(error))
        part.notes.extend(_notes(name, part))
    problems.check(formats.hints())
    return parts


def _read(
    item: Input,
    formats: Formats,
    part: Data,
    problems: _Problems,
    on_bad_record: Literal["error", "skip"],
) -> None:
    """Add the records of one file to ``part``, and itself to its sources."""
    bad: list[str] = []
    used = set()

    def report(line: int, problem: str) -> None:
        if on_bad_record == "skip":
            bad.append(f"{item.path}:{line}: {problem}")
        else:
            problems.add(f"{item.path}:{line}: {problem}")

    known = problems.count
    values, fingerprint = open_values(item, report)

    def records() -> Iterator[Record]:
        for record, form in recognised(item, values, formats, report):
            used.add(form.name)
            yield record

    before = len(part.records)
    part.records.extend(records())
    count = len(part.records) - before
    if not count and bad:
        raise DataError(f"{item.path}: none of its {_records(len(bad))} can be used; the first problem:\n{bad[0]}")
    if not count and problems.count == known:
        raise DataError(f"{item.path} holds no records.")
    part.skipped.extend(bad)
    part.sources.append(DataFile(item.path, ", ".join(sorted(used)), count, fingerprint()))


def recognised(
    item: Input, values: Iterable[tuple[int, Any]], formats: Formats, report: Report
) -> Iterator[tuple[Record, DataFormat]]:
    """Yield what the values of a file mean, each with its format; ``report`` is told of the others."""
    file = str(item.path)
    for line, value in values:
        try:
            renames = (item.columns or item.tags) and isinstance(value, dict)
            record = rename(value, item.columns, item.tags) if renames else value
            form = formats.find(record, item.format)
            yield Record(f"{file}:{line}", form.read(record)), form
        except DataError as error:
            report(line, str(error))


def open_values(item: Input, report: Report) -> tuple[Iterator[tuple[int, Any]], Callable[[], str]]:
    """Return the lines and values of a file, and what gives its hash when they have been read."""
    path = item.path
    if path == STDIN:
        piped = standard_input()
        return read_lines(path, report, piped), piped.sha256
    if str(path).startswith(HUB):
        digest = hashlib.sha256()
        return _hashed(read_hub(str(path), report), digest.update), digest.hexdigest
    match item.suffix:
        case ".json":
            values = read_json(path, report)
        case ".jsonl" | ".jsonlines" | ".ndjson":
            values = read_lines(path, report)
        case ".csv":
            values = read_csv(path, report, ",", item.columns)
        case ".tsv":
            values = read_csv(path, report, "\t", item.columns)
        case ".parquet":
            values = read_parquet(path, report)
        case ".arrow" | ".feather":
            values = read_arrow(path, report)
        case _:
            values = iter([(1, {"text": whole(path)})])
    return values, lambda: sha256(path)


def _hashed(values: Iterator[tuple[int, Any]], update: Callable[[bytes], None]) -> Iterator[tuple[int, Any]]:
    for number, value in values:
        update(json.dumps(value, sort_keys=True, default=str).encode() + b"\n")
        yield number, value


def _notes(name: str, part: Data) -> Iterator[str]:
    files = f" in {len(part.sources):,} files" if len(part.sources) > 1 else ""
    formats = sorted({name for source in part.sources for name in source.format.split(", ")})
    yield f"{name}: {_records(len(part.records))}{files}, format {', '.join(formats)}"
    if part.skipped:
        yield f"{name}: {_records(len(part.skipped), 'bad ')} left out:"
        yield from (f"  {problem}" for problem in part.skipped[:SHOWN])
        if len(part.skipped) > SHOWN:
            yield f"  and {len(part.skipped) - SHOWN:,} more"


def _records(count: int, kind: str = "") -> str:
    return f"{count:,} {kind}record{'s' * (count != 1)}"


class _Problems:
    """What is wrong with the data: the first few in words, the others as a number."""

    def __init__(self) -> None:
        self.count = 0
        self._first: list[str] = []

    def add(self, problem: str) -> None:
        self.count += 1
        if self.count <= SHOWN:
            self._first.append(problem)

    def check(self, hints: Sequence[str]) -> None:
        """Raise DataError if there are problems."""
        lines = [*self._first, *hints]
        if self.count > 1:
            first = f"; the first {SHOWN}" if self.count > SHOWN else ""
            lines.insert(0, f"{self.count} problems in the data{first}:")
        if self.count:
            raise DataError("\n".join(lines))


class Formats:
    """Finds the format of a record among those that are installed, or minds that it has the one that was asked for.

    Where no kind is wanted, a record that gives several is read as the first of them in ``_EVERY``.
    """

    def __init__(self, kind: Kind | None, plugins: Plugins, asked: str | None):
        self._wanted = (kind,) if kind else _EVERY
        self._noun = _MANY[kind] if kind else "records"
        self._formats = list(plugins.formats.all())
        self._fitting = [form for _, form in self._formats if form.data in self._wanted]
        self._plugins = plugins
        self._hints: dict[str, None] = {}  # a set that keeps its order
        self._asked = plugins.formats[asked] if asked else None
        if self._asked and self._asked.data not in self._wanted:
            raise ConfigError(f"--format {asked} gives {_MANY[self._asked.data]}, and here {self._noun} are learned.")

    def find(self, record: Any, expected: str | None = None) -> DataFormat:
        """Return the one format that matches and gives what is learned from.

        Args:
            record: The record.
            expected: The name of the format that its data set is said to have.

        Raises:
            DataError: There is none, or there are several.
        """
        if not isinstance(record, dict):
            raise DataError(f"the record is {noun(record)}; it must be an object.")
        if self._asked:
            return self._checked(record, self._asked)
        fitting = [form for form in self._fitting if form.matches(record)]
        if len(fitting) > 1:
            fitting = [form for form in fitting if form.name == expected] or fitting
            kind = min((form.data for form in fitting), key=self._wanted.index)
            fitting = [form for form in fitting if form.data == kind]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            names = " and ".join(self._plugins.formats.qualified(form) for form in fitting)
            raise DataError(
                f"the keys {_listed(record)} fit the formats {names}; keep those of one, or say which: --format NAME."
            )
        matching = [form for _, form in self._formats if form.matches(record)]
        if matching:
            self._hints[self._objectives(matching[0].data)] = None
            what = f"{_ONE[matching[0].data]} (format {matching[0].name})"
            raise DataError(f"the record is {what}, and here {self._noun} are learned.")
        here = f"{self._noun.capitalize()} come in these formats:"
        self._hints["\n".join([here, self._examples(), _OTHER_NAMES])] = None
        raise DataError(f"no data format has the keys {_listed(record)}.{self._nearest(record)}")

    def hints(self) -> list[str]:
        """Return what helps with all the records for which ``find`` found nothing."""
        return list(self._hints)

    def _checked(self, record: Mapping[str, Any], form: DataFormat) -> DataFormat:
        if not form.matches(record):
            self._hints[f"A record of the format {form.name}: {form.example}"] = None
            raise DataError(f"the keys {_listed(record)} are not those of --format {form.name}.")
        return form

    def _objectives(self, kind: Kind) -> str:
        objectives = self._plugins.objectives
        fit = [f"`lmf {name}`" for name in objectives if objectives[name].data == kind]
        return f"What learns from {_MANY[kind]}: {', '.join(fit) or 'no installed objective'}."

    def _examples(self) -> str:
        return "\n".join(f"  {form.name}: {form.example}" for form in self._fitting)

    def _nearest(self, record: Mapping[str, Any]) -> str:
        expected = {key for _, form in self._formats for key in json.loads(form.example)}
        strange = [key for key in record if key not in expected]
        return next(filter(None, (did_you_mean(key, expected) for key in strange[:10])), "")


def _listed(record: Mapping[str, Any]) -> str:
    names = ", ".join(map(reprlib.repr, list(record)[:8]))
    return f"{names or '(none)'}{f' and {len(record) - 8} more' if len(record) > 8 else ''}"


_EVERY: tuple[Kind, ...] = ("conversation", "preference", "unpaired", "ranking", "prompt", "text")
_OTHER_NAMES = "If the keys only have other names, say which: --columns KEY=COLUMN, such as instruction=question."
_MANY: dict[Kind, str] = {
    "conversation": "conversations",
    "text": "texts",
    "preference": "preferences",
    "unpaired": "judged replies",
    "ranking": "rankings",
    "prompt": "prompts",
}
_ONE: dict[Kind, str] = {
    "conversation": "a conversation",
    "text": "a text",
    "preference": "a preference",
    "unpaired": "a judged reply",
    "ranking": "a ranking",
    "prompt": "a prompt",
}
