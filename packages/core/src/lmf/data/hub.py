"""Data sets of the Hugging Face hub, through the library ``datasets``; this is the only reading that may download."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import DataError, LmfError
from .tables import read_batches
from .textfile import Report

if TYPE_CHECKING:
    import pyarrow

HUB = "hf:"  # how an address begins


class Address(NamedTuple):
    """Which part of which data set: ``owner/name``, one of its configurations, one of its splits."""

    id: str
    config: str | None
    split: str


def address(name: str) -> Address:
    """Take ``hf:owner/name[/config][:split]`` apart; the split is ``train`` unless another is named.

    Raises:
        DataError: It is written otherwise.
    """
    place, _, split = name.removeprefix(HUB).partition(":")
    parts = place.split("/")
    if len(parts) not in (2, 3) or not all(parts) or name.endswith(":"):
        raise DataError(
            f"{name!r} is no address of the hub; write hf:owner/name, hf:owner/name:split or "
            "hf:owner/name/config:split."
        )
    return Address("/".join(parts[:2]), parts[2] if len(parts) == 3 else None, split or "train")


def read_hub(name: str, report: Report) -> Iterator[tuple[int, Any]]:
    """Yield (row, record) of a data set of the hub; rows count from 1.

    Args:
        name: Its address.
        report: Is told each row that cannot be used, and why.

    Raises:
        DataError: It cannot be loaded.
        LmfError: ``datasets`` is not installed, or is so old that it runs code of data sets.
    """
    wanted = address(name)
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise LmfError(f"{name} needs the package datasets: pip install 'lmf-core[hub]'") from None
    if int(datasets.__version__.partition(".")[0]) < 4:
        raise LmfError(
            f"{name}: datasets {datasets.__version__} can run code that a data set brings; pip install 'datasets>=4'"
        )
    try:
        found: Any = datasets.load_dataset(wanted.id, wanted.config, split=wanted.split)
    except Exception as error:  # a loader of any kind and the network are behind it
        cause = str(error).strip() or type(error).__name__
        raise DataError(f"{name} cannot be loaded by the library datasets: {cause}") from None

    def batches() -> Iterator[pyarrow.RecordBatch]:
        for table in found.with_format("arrow").iter(_ROWS):
            yield from table.to_batches()

    yield from read_batches(name, batches(), report)


_ROWS = 1024
