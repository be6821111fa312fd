"""Records as files: each file whole or not at all, and never in place of another unless that is wanted."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmf import ConfigError, DataError, LmfError

Records = Sequence[Mapping[str, Any]]
STDOUT = "-"


def check_outputs(names: Sequence[str], force: bool) -> None:
    """Check that files can be written, before anything is read.

    Args:
        names: The files; ``-`` is standard output.
        force: Replace files that exist.

    Raises:
        ConfigError: One exists, has no folder, has a suffix that says nothing, or is named twice.
    """
    _check_distinct(names)
    for name in names:
        path = Path(name)
        if name == STDOUT:
            continue
        if path.suffix.lower() not in _WRITERS:
            raise ConfigError(f"{name} has the suffix {path.suffix!r}; lmf writes {', '.join(_WRITERS)}.")
        if path.is_dir():
            raise ConfigError(f"{name} is a folder; name a file.")
        if not path.parent.is_dir():
            raise ConfigError(f"{name} cannot be written: there is no folder {path.parent}.")
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise ConfigError(f"{name} cannot be written: the folder {path.parent} is not writable.")
        if path.exists() and not force:
            raise ConfigError(f"{name} exists already; add --force to replace it, or choose another name.")


def save(parts: Mapping[str, Records]) -> None:
    """Write each part into its file: beside it first, then, when all are written, by rename; print last.

    Raises:
        DataError: A kind of file cannot hold a record as it is.
        LmfError: A file cannot be written.
    """
    for name, records in parts.items():
        if not records:
            raise DataError(f"{name} would hold no records.")
    printed = list(_texts(STDOUT, parts.get(STDOUT, ())))  # what is printed cannot be taken back
    written: list[tuple[Path, Path]] = []
    try:
        for name, records in parts.items():
            if name == STDOUT:
                continue
            path = Path(name)
            written.append((partial := path.with_name(f".{path.stem}.partial{path.suffix}"), path))
            try:
                _WRITERS[path.suffix.lower()](partial, name, records)
            except OSError as error:
                raise LmfError(f"{name} cannot be written: {error.strerror or error}.") from None
        for partial, path in written:
            partial.replace(path)
    finally:
        for partial, _ in written:
            partial.unlink(missing_ok=True)
    if STDOUT in parts:
        sys.stdout.writelines(f"{text}\n" for text in printed)
        return
    for name, records in parts.items():
        print(f"{name}: {len(records):,} record{'s' * (len(records) != 1)}")


def _check_distinct(names: Sequence[str]) -> None:
    """Refuse two names of one file, however they are spelled and whatever links lead to it."""
    found: dict[str, str] = {}
    for name in names:
        file = name if name == STDOUT else os.path.realpath(name)
        if file in found:
            same = f"{found[file]} and {name} are one file" if found[file] != name else f"{name} is named twice"
            raise ConfigError(f"{same} as an output; each part needs a file of its own.")
        found[file] = name


def _texts(name: str, records: Records) -> Iterator[str]:
    """Yield each record as JSON."""
    for number, record in enumerate(records, 1):
        try:
            yield _json(record)
        except DataError as error:
            raise DataError(f"{name} cannot hold record {number}: {error}") from None


def _json(value: Any, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_refuse, sort_keys=sort_keys)


def _refuse(value: Any) -> Any:
    raise DataError(f"JSON cannot hold a value of the type {getattr(value, 'type', type(value).__name__)}.")


def _write_lines(path: Path, name: str, records: Records) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        stream.writelines(f"{text}\n" for text in _texts(name, records))


def _write_json(path: Path, name: str, records: Records) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write("[\n" + ",\n".join(_texts(name, records)) + "\n]\n")


def _write_csv(path: Path, name: str, records: Records) -> None:
    from lmf.data.tables import read_csv

    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, _keys(records), lineterminator="\n")
        writer.writeheader()
        for record in records:
            writer.writerow({key: cell if isinstance(cell, str) else _json(cell) for key, cell in record.items()})
    _check_same(name, records, path, read_csv, "a table of texts")


def _write_parquet(path: Path, name: str, records: Records) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise LmfError(f"{name} needs the package pyarrow: pip install 'lmf-core[data]'") from None
    from lmf.data.tables import read_parquet

    columns = {key: [record.get(key) for record in records] for key in _keys(records)}
    try:
        parquet.write_table(pyarrow.table(columns), path)
    except (pyarrow.ArrowException, OverflowError) as error:
        cause = " ".join(str(error).split())
        raise DataError(f"{name} cannot hold these records: {cause}. Write .jsonl instead.") from None
    _check_same(name, records, path, read_parquet, "a table with one type in each column")


def _check_same(name: str, records: Records, path: Path, read: Callable[..., Any], what: str) -> None:
    """Read a table again, for a table cannot say everything that JSON can."""

    def report(line: int, problem: str) -> None:
        raise DataError(f"{name} would not be readable: {problem} Write .jsonl instead.")

    def text(record: Mapping[str, Any]) -> str:
        return _json(record, sort_keys=True)  # to Python, 2 and 2.0 and True and 1 are the same

    again = [record for _, record in read(path, report)]
    pairs = zip(records, again, strict=False)
    different = next((number for number, (record, other) in enumerate(pairs, 1) if text(record) != text(other)), None)
    if different is None and len(again) != len(records):
        different = min(len(again), len(records)) + 1
    if different is not None:
        raise DataError(f"{name} is {what} and cannot hold record {different} as it is. Write .jsonl instead.")


def _keys(records: Records) -> list[str]:
    return list(dict.fromkeys(key for record in records for key in record))


_WRITERS: dict[str, Callable[[Path, str, Records], None]] = {
    ".jsonl": _write_lines,
    ".ndjson": _write_lines,
    ".json": _write_json,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}
