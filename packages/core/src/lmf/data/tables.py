"""Tables as records: CSV and TSV by Python's own reader, Parquet and Arrow by pyarrow, in batches of rows."""

from __future__ import annotations

import csv
import re
import reprlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError, LmfError
from .jsonfile import Foreign, parse, unusable
from .textfile import Report, foreign, guarded, rows

if TYPE_CHECKING:
    import pyarrow

LISTS = frozenset({"messages", "conversations", "history", "tools"})
REPLIES = frozenset({"prompt", "chosen", "rejected", "completion"})
FLAGS = frozenset({"label", "kto_tag"})
NUMBERS = frozenset({"margin"}).union(
    *((f"score_{reply}", f"{reply}_score", f"{reply}_rating", f"{reply}-rating") for reply in ("chosen", "rejected"))
)


def read_csv(
    path: Path, report: Report, delimiter: str = ",", columns: Mapping[str, str] | None = None
) -> Iterator[tuple[int, Any]]:
    """Yield (line, record) of each row of a CSV file (RFC 4180); its first row names the columns.

    Cells are text. A cell of the columns in ``LISTS`` that begins with a bracket is read as
    JSON, and so is one of those in ``REPLIES`` that is a list of messages. In ``FLAGS``, true and
    false in any case are truth values; in ``NUMBERS``, what looks like one is a number. Empty
    cells of all but ``REPLIES`` are left out.

    Args:
        path: The file.
        report: Is told each row that cannot be used, and why.
        delimiter: What stands between two cells.
        columns: The column for each key that has another name in the file.

    Raises:
        DataError: The file cannot be read, its first row does not name the columns, or a quote
            stands where none may, or is never closed: nobody knows where the next row begins.
    """
    csv.field_size_limit(2**31 - 1)  # characters; by default 131,072, and documents are longer
    reader = csv.reader(rows(path), delimiter=delimiter, strict=True)
    keys = {column: key for key, column in (columns or {}).items()}
    header: list[str] = []
    meanings: list[str] = []
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{path}:{line}: {_explain(str(error))}") from None
        if cells is None:
            return
        if not header:
            header = _header(f"{path}:{line}", cells, delimiter)
            meanings = [keys.get(name, name) for name in header]
        elif len(cells) == len(header):
            try:
                yield line, dict(_parsed(header, meanings, cells))
            except DataError as error:
                report(line, str(error))
        elif cells:
            count = f"{len(cells)} cell{'s' * (len(cells) > 1)}"
            report(line, f"the row has {count}; the first row names {len(header)}.")


def read_parquet(path: Path, report: Report) -> Iterator[tuple[int, Any]]:
    """Yield (row, record) of a Parquet file; rows count from 1.

    Args:
        path: The file.
        report: Is told each row that cannot be used, and why.

    Raises:
        DataError: The file is not Parquet, or is damaged.
        LmfError: pyarrow is not installed.
    """
    _check_head(path, (b"PAR1",), "Parquet")
    _check_pyarrow(path)

    def batches() -> Iterator[pyarrow.RecordBatch]:
        from pyarrow.parquet import ParquetFile

        with ParquetFile(path) as file:
            yield from file.iter_batches(_ROWS)

    yield from read_batches(path, batches(), report)


def read_arrow(path: Path, report: Report) -> Iterator[tuple[int, Any]]:
    """Yield (row, record) of an Arrow file or stream, as Feather and ``datasets`` write them; rows count from 1.

    Args:
        path: The file.
        report: Is told each row that cannot be used, and why.

    Raises:
        DataError: The file is neither, or is damaged.
        LmfError: pyarrow is not installed.
    """
    head = _check_head(path, (b"ARROW1\0\0", b"\xff\xff\xff\xff"), "Arrow")
    _check_pyarrow(path)

    def batches() -> Iterator[pyarrow.RecordBatch]:
        from pyarrow import OSFile, ipc

        with OSFile(str(path)) as file:
            if head.startswith(b"ARROW1"):
                whole = ipc.open_file(file)
                yield from map(whole.get_batch, range(whole.num_record_batches))
            else:
                yield from ipc.open_stream(file)

    yield from read_batches(path, batches(), report)


def read_batches(name: Path | str, batches: Iterable[pyarrow.RecordBatch], report: Report) -> Iterator[tuple[int, Any]]:
    """Yield (row, record) of Arrow data.

    Arrow gives every record every field, inside structures too. Those without a value are
    left out, so that a record looks as it was written. A value that JSON cannot hold
    becomes ``Foreign``.

    Args:
        name: What to call the data in an error.
        batches: The data.
        report: Is told each row that cannot be used, and why.

    Raises:
        DataError: The data are damaged.
    """
    from pyarrow import ArrowException

    number = 0
    try:
        for batch in batches:
            batch.validate(full=True)  # a damaged batch can point outside itself
            _check_names(name, batch.schema.names)
            for start in range(0, batch.num_rows, _ROWS):
                for record in _records(batch.slice(start, _ROWS)):
                    number += 1
                    fault = unusable(record)
                    if fault:
                        report(number, fault)
                    else:
                        yield number, record
    except (ArrowException, OSError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        cause = str(error).strip().partition("\n")[0][:200].rstrip(".") or type(error).__name__
        raise DataError(f"{name} is damaged or cut ({cause}); fetch it again.") from None


def _header(where: str, cells: Sequence[str], delimiter: str) -> list[str]:
    """Return the names of the columns."""
    first = cells[0] if cells else ""
    if first.lstrip().startswith("<"):
        raise DataError(f"{where}: it starts with '<': it is a web page (HTML or XML), not a table; fetch the data.")
    if first.lstrip().startswith(("{", "[")):
        raise DataError(f"{where}: it starts with {first.lstrip()[0]!r}: it is JSON, not a table; call it .jsonl.")
    other = next((mark for mark in ",;\t|" if mark != delimiter and mark in first), None)
    if len(cells) == 1 and other:
        raise DataError(
            f"{where}: the first row is one column, {reprlib.repr(first)}; its cells are separated by {other!r}, "
            f"and this file's must be by {delimiter!r}. {_OTHER.get(other, 'Write it with commas.')}"
        )
    if not all(cell.strip() for cell in cells):
        number = next(number for number, cell in enumerate(cells, 1) if not cell.strip())
        raise DataError(
            f"{where}: column {number} has no name; the first row names every column. "
            "If it is an index that pandas wrote, write the file with index=False."
        )
    _check_names(where, cells)
    return list(cells)


def _check_names(where: Path | str, names: Sequence[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{where}: two columns are called {reprlib.repr(twice[0])}; rename or remove one.")


def _parsed(header: Sequence[str], meanings: Sequence[str], cells: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yield the name of each column and what its cell holds, as the key that it stands for has it."""
    for name, meaning, cell in zip(header, meanings, cells, strict=True):
        if meaning not in _SPECIAL:
            yield name, cell
        elif meaning in REPLIES:
            yield name, _json(name, cell) if _MESSAGES.match(cell) else cell
        elif not cell.strip():
            continue
        elif meaning in LISTS:
            yield name, _json(name, cell) if cell.lstrip().startswith(("[", "{")) else cell
        elif meaning in FLAGS:
            yield name, {"true": True, "false": False}.get(cell.strip().lower(), cell)
        else:
            yield name, _json(name, cell) if _NUMBER.fullmatch(cell) else cell


def _json(name: str, cell: str) -> Any:
    try:
        return parse(cell)
    except DataError as error:
        raise DataError(f"the cell {name} is {error} Write lists as JSON, with json.dumps.") from None


def _explain(message: str) -> str:
    """Return the cause of an error of the ``csv`` module in the words of a user."""
    if message == "unexpected end of data":
        return "a quote opens in this row and is never closed; close it, or write a quote within a cell twice."
    if message.startswith("new-line character"):
        return "a carriage return stands without a line feed; write line ends as \\n or \\r\\n."
    if "expected after" in message:
        return "more follows a closing quote; write a quote within a cell twice."
    return f"{message}."


def _check_head(path: Path, magics: tuple[bytes, ...], kind: str) -> bytes:
    """Return the first bytes of a file that must begin with one of ``magics``."""
    with guarded(path) as file:
        head = file.read(_HEAD)
    if not head:
        raise DataError(f"{path} is empty.")
    if not head.startswith(magics):
        cause = foreign(head) or f"is not {kind} data: it starts with {head[:16]!r}"
        raise DataError(f"{path} {cause}.")
    return head


def _check_pyarrow(path: Path) -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise LmfError(f"{path} needs the package pyarrow: pip install 'lmf-core[data]'") from None


def _records(batch: pyarrow.RecordBatch) -> Iterator[dict[str, Any]]:
    names = batch.schema.names
    for values in zip(*map(_values, batch.columns), strict=True):
        yield {name: _present(value) for name, value in zip(names, values, strict=True) if value is not None}


def _values(column: pyarrow.Array) -> list[Any]:
    if _is_json(column.type):
        return column.to_pylist()
    value = Foreign(str(column.type))
    return [value if valid else None for valid in column.is_valid().to_pylist()]


def _present(value: Any) -> Any:
    """Leave out the fields without a value, at every depth."""
    if isinstance(value, dict):
        return {key: _present(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_present(item) for item in value]
    return value


def _is_json(kind: pyarrow.DataType) -> bool:
    """Whether JSON can hold every value of a type."""
    from pyarrow import types

    if types.is_struct(kind):
        return all(_is_json(kind.field(index).type) for index in range(kind.num_fields))
    if any(is_list(kind) for is_list in (types.is_list, types.is_large_list, types.is_fixed_size_list)):
        return _is_json(kind.value_type)
    if types.is_dictionary(kind):
        return _is_json(kind.value_type)
    plain = (types.is_null, types.is_boolean, types.is_integer, types.is_floating)
    texts = (types.is_string, types.is_large_string, types.is_string_view)
    return any(is_kind(kind) for is_kind in (*plain, *texts))


_HEAD = 512  # bytes
_ROWS = 1024
_OTHER = {"\t": "Call it .tsv.", ",": "Call it .csv."}
_SPECIAL = LISTS | REPLIES | FLAGS | NUMBERS
_NUMBER = re.compile(r"\s*-?\d+(\.\d+)?([eE][-+]?\d+)?\s*")
_MESSAGES = re.compile(r'\s*\[\s*\{\s*"(role|from|content|value)"\s*:')
