"""What a name of data stands for: files, folders, patterns, standard input, data sets, and the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .cache import data_files
from .errors import DataError, UnknownName, did_you_mean
from .plugins import Plugins
from .specs import DataSet
from .textfile import PACKED, STDIN

TEXTS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".md", ".markdown")  # each also packed
TABLES = (".parquet", ".arrow", ".feather")
HUB = "hf:"


@dataclass(frozen=True, slots=True)
class Input:
    """One file or stream of records.

    Attributes:
        path: The file, or what to call the stream: ``<stdin>``, or ``hf:`` and what follows.
        format: The name of the format of its records; "" to go by their keys.
        columns: Keys of its records, and the keys that their format has for them.
    """

    path: Path
    format: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def suffix(self) -> str:
        """What the file holds, for example ``.json`` for ``a.json.gz``."""
        return _suffix(self.path)


def find(name: str, plugins: Plugins) -> list[Input]:
    """Return what a name stands for.

    Args:
        name: A file; a folder, which means the data files that it holds itself, sorted; a
            pattern with ``*``, ``?``, ``[...]`` or ``**``; ``-`` for standard input;
            ``hf:owner/name[/config][:split]``; or the name of a data set.
        plugins: Where data sets are looked up.

    Raises:
        DataError: It stands for nothing, for two things, or for what lmf cannot read.
        PluginError: Two packages define a data set of this name.
    """
    if name == "-":
        return [Input(STDIN)]
    if name.startswith(HUB):
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
    there = bool(name) and path.exists()
    if there and name in plugins.datasets:
        qualified = plugins.datasets.qualified(plugins.datasets[name])
        raise DataError(f"{name!r} is a path and a data set; write {f'./{name}'!r} or {qualified!r}.")
    if there:
        return [Input(file) for file in (_folder(path) if path.is_dir() else [_data_file(path)])]
    if any(mark in name for mark in "*?["):
        return [Input(file) for file in _matching(name)]
    try:
        dataset = plugins.datasets[name]
    except UnknownName:
        raise DataError(_no_such(name, path, plugins)) from None
    return _of_data_set(dataset)


def _of_data_set(dataset: DataSet) -> list[Input]:
    files = [_data_file(file) for file in data_files(dataset)]
    if not files:
        raise DataError(f"The data set {dataset.name!r} has no files.")
    return [Input(file, dataset.format, dataset.columns) for file in files]


def _folder(folder: Path) -> list[Path]:
    visible = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    data = _data_among([path for path in visible if not path.is_dir()])
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
    # what describes data: README.md is no document, state.json is written by `datasets` beside its tables
    notes = [path for path in files if path.name.lower() in _NOTES]
    notes += [path for path in files if path.name == "state.json" and path.parent in tables]
    data = [path for path in files if path not in notes]
    alien = next((path for path in data if _suffix(path) in _FOREIGN), None)
    if alien:
        raise DataError(
            f"{alien.parent} holds {alien.name}, which lmf cannot read; convert it to JSON Lines or move it away."
        )
    return [_data_file(path) for path in data if _suffix(path) in (*TEXTS, *TABLES)]


def _data_file(path: Path) -> Path:
    suffix = _suffix(path)
    if suffix not in (*TEXTS, *TABLES):
        hint = " Convert it to JSON Lines." if suffix in _FOREIGN else ""
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


_NOTES = ("readme.md", "dataset_info.json", "dataset_dict.json")
_FOREIGN = (".xlsx", ".xls", ".bz2", ".xz", ".zip", ".7z", ".tar")
_READABLE = f"{', '.join(TEXTS)}, each also with .gz and .zst, and {', '.join(TABLES)}"
