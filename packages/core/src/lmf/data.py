"""Training data: from names to files, from files to records, with every bad record named in one error."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .conversation import Kind, Record
from .errors import DataError, UnknownName, did_you_mean
from .jsonfile import noun, read_json, read_lines
from .plugins import Plugins
from .specs import DataFormat
from .textfile import Report, sha256, whole

SUFFIXES = (".json", ".jsonl", ".ndjson", ".txt")  # each also with .gz


@dataclass(frozen=True, slots=True)
class Source:
    """One file that was read.

    Attributes:
        path: The file.
        format: The names of its records' formats; nearly always one.
        records: How many records it holds.
        sha256: The SHA-256 of its bytes, in hexadecimal.
    """

    path: Path
    format: str
    records: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Data:
    """Records in the order of the files, and the files."""

    records: list[Record]
    sources: list[Source]


def read(names: Sequence[str], kind: Kind, plugins: Plugins) -> Data:
    """Read training data; all of it, or nothing and an error that names every problem.

    Args:
        names: Files, folders and names of data sets. A folder means the data files that it
            holds itself, sorted by name. What is named twice is read twice.
        kind: What the objective learns from.
        plugins: Where data sets and formats are looked up.

    Raises:
        DataError: A name is unknown or has two meanings, or a file or a record cannot be used.
        PluginError: Two packages define a data set of this name.
    """
    files = [file for name in names for file in _files(name, plugins)]
    if not files:
        raise DataError("No data are named; name a file, a folder or a data set.")
    problems = _Problems()
    formats = _Formats(kind, plugins)
    data = Data([], [])
    for path in files:
        try:
            _read_file(path, formats, data, problems)
        except DataError as error:
            problems.add(str(error))
    problems.check(formats.hints())
    return data


def _read_file(path: Path, formats: _Formats, data: Data, problems: _Problems) -> None:
    """Add the records of one file to ``data``, and itself to its sources."""
    known = problems.count
    before = len(data.records)
    used = set()

    def report(line: int, problem: str) -> None:
        problems.add(f"{path}:{line}: {problem}")

    for line, value in _values(path, report):
        try:
            form = formats.find(value)
            data.records.append(Record(f"{path}:{line}", form.read(value)))
        except DataError as error:
            report(line, str(error))
        else:
            used.add(form.name)
    count = len(data.records) - before
    if not count and problems.count == known:
        raise DataError(f"{path} holds no records.")
    data.sources.append(Source(path, ", ".join(sorted(used)), count, sha256(path)))


def _values(path: Path, report: Report) -> Iterator[tuple[int, Any]]:
    suffix = _suffix(path)
    if suffix == ".txt":
        return iter([(1, {"text": whole(path)})])
    return read_json(path, report) if suffix == ".json" else read_lines(path, report)


class _Problems:
    """What is wrong with the data: the first few in words, the others as a number."""

    shown = 10

    def __init__(self) -> None:
        self.count = 0
        self._first: list[str] = []

    def add(self, problem: str) -> None:
        self.count += 1
        if self.count <= self.shown:
            self._first.append(problem)

    def check(self, hints: Sequence[str]) -> None:
        """Raise DataError if there are problems."""
        lines = [*self._first, *hints]
        if self.count > 1:
            first = f"; the first {self.shown}" if self.count > self.shown else ""
            lines.insert(0, f"{self.count} problems in the data{first}:")
        if self.count:
            raise DataError("\n".join(lines))


class _Formats:
    """Finds the format of a record among those that are installed."""

    def __init__(self, kind: Kind, plugins: Plugins):
        self._kind = kind
        self._formats = list(plugins.formats.all())
        self._plugins = plugins
        self._hints: dict[str, None] = {}  # a set that keeps its order

    def find(self, record: Any) -> DataFormat:
        """Return the one format that matches and gives what is learned from.

        Raises:
            DataError: There is none, or there are several.
        """
        if not isinstance(record, dict):
            raise DataError(f"the record is {noun(record)}; it must be an object.")
        matching = [form for _, form in self._formats if form.matches(record)]
        fitting = [form for form in matching if form.data == self._kind]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            names = " and ".join(self._plugins.formats.qualified(form) for form in fitting)
            raise DataError(f"the keys {_listed(record)} fit the formats {names}; keep those of one.")
        if matching:
            self._hints[self._objectives(matching[0].data)] = None
            what = f"a {matching[0].data} (format {matching[0].name})"
            raise DataError(f"the record is {what}, and here {self._kind}s are learned.")
        self._hints["A record has to be in one of these formats:\n" + self._examples()] = None
        raise DataError(f"no data format has the keys {_listed(record)}.{self._nearest(record)}")

    def hints(self) -> list[str]:
        """Return what helps with all the records for which ``find`` found nothing."""
        return list(self._hints)

    def _objectives(self, kind: Kind) -> str:
        objectives = self._plugins.objectives
        fit = [f"`lmf {name}`" for name in objectives if objectives[name].data == kind]
        return f"What learns from {kind}s: {', '.join(fit) or 'no installed objective'}."

    def _examples(self) -> str:
        return "\n".join(f"  {form.name}: {form.example}" for _, form in self._formats)

    def _nearest(self, record: Mapping[str, Any]) -> str:
        expected = {key for _, form in self._formats for key in json.loads(form.example)}
        strange = [key for key in record if key not in expected]
        return next(filter(None, (did_you_mean(key, expected) for key in strange[:10])), "")


def _listed(record: Mapping[str, Any]) -> str:
    names = ", ".join(map(reprlib.repr, list(record)[:8]))
    return f"{names or '(none)'}{f' and {len(record) - 8} more' if len(record) > 8 else ''}"


def _files(name: str, plugins: Plugins) -> list[Path]:
    """Return the files that a name stands for."""
    try:
        return _named(name, Path(name), plugins)
    except OSError as error:
        raise DataError(f"{name!r} cannot be read: {error.strerror or error}.") from None


def _named(name: str, path: Path, plugins: Plugins) -> list[Path]:
    exists = bool(name) and path.exists()
    if exists and name in plugins.datasets:
        qualified = plugins.datasets.qualified(plugins.datasets[name])
        raise DataError(f"{name!r} is a path and a data set; write {f'./{name}'!r} or {qualified!r}.")
    if exists:
        return _folder(path) if path.is_dir() else [_data_file(path)]
    try:
        dataset = plugins.datasets[name]
    except UnknownName:
        raise DataError(_no_such(name, path, plugins)) from None
    files = [_data_file(Path(file)) for file in dataset.files()]
    if not files:
        raise DataError(f"The data set {name!r} has no files.")
    return files


def _folder(folder: Path) -> list[Path]:
    visible = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    files = [path for path in visible if not path.is_dir()]
    foreign = [path.name for path in files if _suffix(path) in _FOREIGN]
    if foreign:
        raise DataError(
            f"{folder} holds {foreign[0]}, which lmf cannot read; convert it to JSON Lines or move it away."
        )
    data = [path for path in files if _suffix(path) in SUFFIXES]
    if not data:
        inner = ", ".join(path.name for path in visible[:10] if path.is_dir())
        hint = f" Name one of its folders: {inner}." if inner else ""
        raise DataError(f"{folder} holds no data files; lmf reads {_READABLE}.{hint}")
    return data


def _data_file(path: Path) -> Path:
    if _suffix(path) not in SUFFIXES:
        hint = " Convert it to JSON Lines." if _suffix(path) in _FOREIGN else ""
        raise DataError(f"{path} has the suffix {path.suffix!r}; lmf reads {_READABLE}.{hint}")
    if path.exists() and not path.is_file():
        raise DataError(f"{path} is not a file.")
    return path


def _suffix(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _no_such(name: str, path: Path, plugins: Plugins) -> str:
    folder = path.absolute().parent
    missing = path.absolute() if folder.exists() else folder
    nearby = [entry.name for entry in folder.glob("*")]  # nothing where the folder cannot be read
    meant = did_you_mean(path.name, nearby) or did_you_mean(name, plugins.datasets)
    lines = [f"No file, folder or data set is called {name!r}: {missing} does not exist.{meant}"]
    lines.append(f"Data sets installed: {', '.join(plugins.datasets) or 'none'}.")
    return "\n".join([*lines, *plugins.datasets.hints])


_FOREIGN = (".csv", ".tsv", ".parquet", ".arrow", ".xlsx", ".zst", ".bz2", ".xz", ".zip", ".tar")
_READABLE = f"{', '.join(SUFFIXES)}, each also with .gz"
