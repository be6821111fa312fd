"""Records of any kind, each with the JSON object that it was read from.

A run wants records of one kind, and of them only what they mean. What looks at data or rewrites
them wants every record as it stands.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from ..conversation import Content
from ..plugins import Plugins, Registry
from ..specs import DataFormat
from .reading import DataFile, joined, read_each


@dataclass(frozen=True, slots=True)
class Original:
    """A record as it stands in its file.

    Attributes:
        where: The file and line it comes from, or the file and its number in it.
        object: The JSON object; its keys are those of its format, where columns were named.
        format: Its format; ``OBJECT`` if nobody asked.
        data: What it holds; of ``OBJECT``, the object itself.
    """

    where: str
    object: dict[str, Any]
    format: DataFormat
    data: Any


@dataclass(frozen=True, slots=True)
class Originals:
    """Records in the order of their files, and the files."""

    records: list[Original]
    sources: list[DataFile]


OBJECT = DataFormat(
    name="object",
    summary="A JSON object, whatever it holds.",
    data="text",
    example="{}",
    matches=lambda record: True,
    read=lambda record: cast(Content, record),
)


def read_objects(names: Sequence[str], plugins: Plugins, columns: Mapping[str, str] | None = None) -> Originals:
    """Read records without asking what they mean.

    Args:
        names: What ``--data`` takes.
        plugins: Where data sets are looked up.
        columns: The column of the files for each key that is wanted; by default all keys are.

    Raises:
        DataError: A name is unknown, or a file or a record is not readable.
    """
    return _read(names, plugins, [("lmf-core", OBJECT)], columns=columns)


def read_originals(
    names: Sequence[str], plugins: Plugins, format: str | None = None, columns: Mapping[str, str] | None = None
) -> Originals:
    """Read records of whatever kind.

    Args:
        names: What ``--data`` takes.
        plugins: Where data sets and formats are looked up.
        format: The name of the format of all records; by default their keys tell it.
        columns: The column of the files for each key of the format.

    Raises:
        DataError: A name is unknown, or a file or a record cannot be used.
        ConfigError: No format has this name.
    """
    return _read(names, plugins, list(plugins.formats.all()), format=format, columns=columns)


def _read(names: Sequence[str], plugins: Plugins, formats: Sequence[tuple[str, DataFormat]], **how: Any) -> Originals:
    keeping = copy.copy(plugins)
    keeping.formats = Registry(plugins.formats.kind, DataFormat)
    keeping.formats.hints = plugins.formats.hints
    for number, (package, form) in enumerate(formats):
        keeping.formats.add(replace(form, read=_keep(number, form)), package)
    data = joined(read_each(names, None, keeping, **how))
    found = Originals([], data.sources)
    for record in data.records.given_away():
        number, object, content = cast(tuple[int, dict[str, Any], Any], record.data)
        found.records.append(Original(record.where, object, formats[number][1], content))
    return found


def _keep(number: int, form: DataFormat) -> Callable[[Mapping[str, Any]], Any]:
    """Return a reading that gives the number of the format and the object, too."""
    return lambda record: (number, record, form.read(record))
