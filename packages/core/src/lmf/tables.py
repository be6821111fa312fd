"""Tables as records: CSV and TSV by Python's own reader, Parquet and Arrow by pyarrow, in batches of rows."""

from __future__ import annotations

import csv
import itertools
import re
import reprlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import DataError, LmfError
from .jsonfile import Foreign, parse, unusable
from .textfile import Report, foreign, guarded, rows

if TYPE_CHECKING:
    import pyarrow

LISTS = frozenset({"messages", "conversations", "history", "tools"})
REPLIES = frozenset({"prompt", "chosen", "rejected", "completion"})


def read_csv(path: Path, report: Report) -> Iterator[tuple[int, Any]]:
    """Yield (line, record) of each row of a CSV or TSV file (RFC 4180); its first row names the columns.

    Cells are text. A cell of the columns in ``LISTS`` is read as JSON, and as nothing if it is
    empty; so is a cell of those in ``REPLIES`` if it is a list of messages.

    Args:
        path: The file; with tabs between the cells if it is called ``.tsv``.
        report: Is told each row that cannot be used, and why.

    Raises:
        DataError: The file cannot be read, or its first row does not name the columns.
    """
    csv.field_size_limit(2**31 - 1)  # characters; by default 131,072, and documents are longer
    tab = ".tsv" in path.name.lower()
    reader = csv.reader(rows(path), delimiter="\t" if tab else ",", strict=True)
    header: list[str] = []
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            cause = _csv_cause(str(error))
            if not header or "never closed" in cause:
                raise DataError(f"{path}:{line}: {cause}") from None
            report(line, cause)
            continue
        if not cells:
            continue
        if not header:
            header = _header(f"{path}:{line}", cells, tab)
        elif len(cells) != len(header):
            report(line, f"the row has {_count(cells, 'cell')} and the first row names {_count(header, 'column')}.")
        else:
            try:
                yield line, dict(_cells(header, cells))
            except DataError as error:
                report(line, str(error))


def read_parquet(path: Path, report: Report) -> Iterator[tuple[int, Any]]:
    """Yield (row, record) of a Parquet file; rows count from 1.

    Args:
        path: The file.
        report: Is told each row that cannot be used, and why.

    Raises:
        DataError: The file is not Parquet, or is damaged.
        LmfError: pyarrow is not installed.
    """
    _check_binary(path, (b"PAR1",), "Parquet")
    _arrow(path)
    from pyarrow.parquet import ParquetFile

    def batches() -> Iterator[pyarrow.RecordBatch]:
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
    head = _check_binary(path, (b"ARROW1\0\0", b"\xff\xff\xff\xff"), "Arrow")
    pa = _arrow(path)

    def batches() -> Iterator[pyarrow.RecordBatch]:
        with pa.OSFile(str(path)) as file:
            if head.startswith(b"ARROW1"):
                whole = pa.ipc.open_file(file)
                yield from map(whole.get_batch, range(whole.num_record_batches))
            else:
                yield from pa.ipc.open_stream(file)

    yield from read_batches(path, batches(), report)


def read_batches(
    name: Path | str, batches: Iterable[pyarrow.RecordBatch], report: Report
) -> Iterator[tuple[int, Any]]:
    """Yield (row, record) of Arrow data.

    Arrow gives every record every field, also inside structures; those without a value are
    left out, so that a record looks as it was written. A value that JSON cannot hold
    becomes ``Foreign``.

    Args:
        name: What to call the data in an error.
        batches: The data.
        report: Is told each row that cannot be used, and why.

    Raises:
        DataError: The data are damaged.
    """
    import pyarrow as pa

    number = 0
    try:
        for batch in batches:
            batch.validate(full=True)  # what a damaged file says of its own length is not to be believed
            alien = {field.name: Foreign(str(field.type)) for field in batch.schema if not _is_json(field.type)}
            names = _unique(name, batch.schema.names)
            columns = [batch.column(index) for index, name in enumerate(names) if name not in alien]
            plain = pa.RecordBatch.from_arrays(columns, [name for name in names if name not in alien])
            for start in range(0, batch.num_rows, _ROWS):
                for record in _records(plain, start, min(batch.num_rows, start + _ROWS)):
                    record |= {key: value for key, value in alien.items() if batch.column(key)[number - start].is_valid}
                    number += 1
                    yield number, record
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        first = str(error).strip().partition("\n")[0][:200] or type(error).__name__
        raise DataError(f"{name} is damaged or cut ({first.rstrip('.')}); fetch it again.") from None
