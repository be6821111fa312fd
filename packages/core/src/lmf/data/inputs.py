"""What a name of data stands for: files, folders, patterns, standard input, data sets, and the Hugging Face hub."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DataError, UnknownName, did_you_mean
from ..formats.datasetinfo import entry
from ..plugins import Plugins
from ..specs import DataSet
from .cache import data_files
from .hub import HUB, address
from .jsonfile import parse
from .textfile import PACKED, STDIN, guarded, whole

TEXTS = (".json", ".jsonl", ".jsonlines", ".ndjson", ".csv", ".tsv", ".txt", ".md", ".markdown")  # each also packed
TABLES = (".parquet", ".arrow", ".feather")
INFO = "dataset_info.json"  # of LLaMA-Factory and LLM-Genie; in a folder of `datasets` it has another meaning


@dataclass(frozen=True, slots=True)
class Input:
    """One file or stream of records.

    Attributes:
        path: The file, or what to call the stream: ``<stdin>``, or ``hf:`` and what follows.
        format: The name of the format of its records, if that is known; it decides where the keys fit several.
        columns: Its column for each key of the format; empty to take its records as they are.
        tags: How its messages are written, as LLaMA-Factory says it.
    """

    path: Path
    format: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def suffix(self) -> str:
        """What the file holds, for example ``.json`` for ``a.json.gz``."""
        return _suffix(self.path)


def find(name: str, plugins: Plugins) -> list[Input]:
    """Return what a name stands for.

    Args:
        name: A file; a folder, which means the data files that it holds itself, sorted; a
            pattern with ``*``, ``?``, ``[...]`` or ``**``; ``-`` for standard input;
            ``hf:owner/name[/config][:split]``; the name of a data set; or
            ``folder/dataset_info.json:name``, where the folder may be left out for the current one.
        plugins: Where data sets are looked up.

    Raises:
        DataError: It stands for nothing, for two things, or for what lmf cannot read.
        PluginError: Two packages define a data set of this name.
    """
    if name == "-":
        return [Input(STDIN)]
    if name.startswith(HUB):
        address(name)
        return [Input(Path(name))]
    try:
        return _named(name, Path(name), plugins)
    except OSError as error:
        raise DataError(f"{name!r} cannot be read: {error.strerror or error}.") from None


def exists(name: str) -> bool:
    """Whether there is a file or a folder of this name."""
    try:
        return bool(name) and Path(name).exists()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _named(name: str, path: Path, plugins: Plugins) -> list[Input]:
    file, _, described = name.rpartition(":")
    if Path(file).name == INFO:
        return _described(Path(file), described)
    meanings = []
    if name and path.exists():
        meanings.append(f"a path ({f'./{name}'!r})")
    if name in plugins.datasets:
        meanings.append(f"a data set ({plugins.datasets.qualified(plugins.datasets[name])!r})")
    if Path(INFO).is_file() and name in _info(Path(INFO)):
        meanings.append(f"described by {INFO} ({f'{INFO}:{name}'!r})")
    if len(meanings) > 1:
        raise DataError(f"{name!r} is {' and '.join(meanings)}; write which one is meant.")
    if path.name == INFO:
        raise DataError(f"{path} describes data sets; write which one is meant: {path}:NAME.")
    if name and path.exists():
        return [Input(file) for file in (_folder(path) if path.is_dir() else [_data_file(path)])]
    if any(mark in name for mark in "*?["):
        return [Input(file) for file in _matching(name)]
    if meanings and name not in plugins.datasets:
        return _described(Path(INFO), name)
    try:
        dataset = plugins.datasets[name]
    except UnknownName:
        raise DataError(_no_such(name, path, plugins)) from None
    return _of_data_set(dataset)


def _of_data_set(dataset: DataSet) -> list[Input]:
    files = [_data_file(file) for file in data_files(dataset)]
    if not files:
        raise DataError(f"The data set {dataset.name!r} has no files.")
    columns = {key: column for column, key in dataset.columns.items()}
    return [Input(file, dataset.format, columns) for file in files]


def _described(path: Path, name: str) -> list[Input]:
    """Return the files of a data set that a ``dataset_info.json`` describes."""
    described = entry(_info(path), name)
    place = path.parent / described.file
    files = _folder(place) if place.is_dir() else [_data_file(place)]
    if described.sha1:
        with guarded(place) as stream:
            digest = hashlib.file_digest(stream, "sha1").hexdigest()
        if digest != described.sha1.lower():
            raise DataError(f"{place} has the SHA-1 {digest}, and {path} says {described.sha1}; fetch it again.")
    return [Input(file, described.format, described.columns, described.tags) for file in files]


def _info(path: Path) -> Any:
    try:
        return parse(whole(path))
    except DataError as error:
        raise DataError(str(error) if str(error).startswith(str(path)) else f"{path} is {error}") from None


def _folder(folder: Path) -> list[Path]:
    visible = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    # README.md tells of the data beside it; a pattern that matches it asks for documents
    data = _data_among([path for path in visible if not path.is_dir() and path.name.lower() != "readme.md"])
    if not data:
        inner = ", ".join(path.name for path in visible[:10] if path.is_dir())
        hint = f" Name one of its folders: {inner}." if inner else ""
        raise DataError(f"{folder} holds no data files; lmf reads {_READABLE}.{hint}")
    return data


def _matching(pattern: str) -> list[Path]:
    path = Path(pattern)
    try:
        found = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
    except (ValueError, NotImplementedError) as error:
        raise DataError(f"{pattern!r} is not a pattern: {error}.") from None
    files = [each for each in found if not each.is_dir() and not _hidden(each, path)]
    data = _data_among(files)
    if not data:
        what = f"none of the {len(files)} files that match is one that lmf reads" if files else "no file matches it"
        raise DataError(f"{pattern!r} gives no data: {what}; lmf reads {_READABLE}.")
    return data


def _hidden(path: Path, pattern: Path) -> bool:
    """Whether a part of a path begins with a dot and the pattern does not ask for it."""
    return any(part.startswith(".") and part.strip(".") and part not in pattern.parts for part in path.parts)


def _data_among(files: Iterable[Path]) -> list[Path]:
    """Return the data files; other files may lie beside them, but no data that would be passed over."""
    tables = {path.parent for path in files if _suffix(path) == ".arrow"}
    # what describes data: state.json is written by `datasets` beside its tables
    notes = {path for path in files if path.name.lower() in _NOTES}
    notes |= {path for path in files if path.name == "state.json" and path.parent in tables}
    data = [path for path in files if path not in notes]
    for path in data:
        if advice := _advice(path):
            raise DataError(f"{path.parent} holds {path.name}, which lmf cannot read; {advice} or move it away.")
    return [_data_file(path) for path in data if _suffix(path) in (*TEXTS, *TABLES)]


def _advice(path: Path) -> str:
    """Return what to do with a file of data that lmf cannot read; "" for all others."""
    suffix = _suffix(path)
    if suffix in _FOREIGN:
        return "convert it to JSON Lines"
    if path.suffix.lower() in PACKED and suffix not in (*TEXTS, *TABLES):
        return f"say in its name what is packed, such as {path.stem}.jsonl{path.suffix},"
    return ""


def _data_file(path: Path) -> Path:
    suffix = _suffix(path)
    if suffix not in (*TEXTS, *TABLES):
        advice = _advice(path).rstrip(",")
        hint = f" {advice[0].upper()}{advice[1:]}." if advice else ""
        raise DataError(f"{path} has the suffix {path.suffix!r}; lmf reads {_READABLE}.{hint}")
    if suffix in TABLES and path.suffix.lower() in PACKED:
        raise DataError(f"{path} is packed; unpack it: {suffix} files are packed inside.")
    if path.exists() and not path.is_file():
        raise DataError(f"{path} is not a file.")
    return path


def _suffix(path: Path) -> str:
    packed = path.suffix.lower() in PACKED
    return (path.with_suffix("") if packed else path).suffix.lower()


def _no_such(name: str, path: Path, plugins: Plugins) -> str:
    folder = path.absolute().parent
    missing = path.absolute() if folder.exists() else folder
    nearby = [entry.name for entry in folder.glob("*")]  # nothing where the folder cannot be read
    meant = did_you_mean(path.name, nearby) or did_you_mean(name, plugins.datasets)
    lines = [f"No file, folder or data set is called {name!r}: {missing} does not exist.{meant}"]
    lines.append(f"Data sets installed: {', '.join(plugins.datasets) or 'none'}.")
    return "\n".join([*lines, *plugins.datasets.hints])


_NOTES = (INFO, "dataset_dict.json")
_ARCHIVES = (".tar", ".tgz", ".tbz", ".tbz2", ".txz", ".tzst", ".zip", ".7z", ".rar")
_OTHERWISE_PACKED = (".bz2", ".xz", ".lzma", ".lz4", ".br", ".z")
_SHEETS = (".xls", ".xlsx", ".xlsm", ".xlsb", ".ods", ".tab", ".dta", ".sav", ".rds")
_DOCUMENTS = (".xml", ".html", ".htm", ".xhtml", ".warc", ".pdf", ".doc", ".docx", ".odt", ".rtf", ".epub", ".mobi")
_DATABASES = (".sqlite", ".sqlite3", ".mdb", ".orc", ".avro", ".h5", ".hdf5", ".tfrecord", ".tfrecords")
_OBJECTS = (".pkl", ".pickle", ".npy", ".npz", ".mat", ".msgpack")
_FOREIGN = {*_ARCHIVES, *_OTHERWISE_PACKED, *_SHEETS, *_DOCUMENTS, *_DATABASES, *_OBJECTS}
_READABLE = f"{', '.join(TEXTS)}, each also with .gz and .zst, and {', '.join(TABLES)}"
