"""The examples of a run in a few flat arrays: three to five bytes a token instead of fifty."""

from __future__ import annotations

import itertools
import json
import mmap
import operator
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, overload

from ..errors import LmfError
from .encoder import IGNORED, Example


class Examples(Sequence[Example]):
    """Examples that are made when they are asked for.

    Tokens are numbers of two or four bytes. A label is its token or nothing, so one byte tells
    them apart. Weights are kept only if one is not 1.
    """

    def __init__(self, examples: Iterable[Example] = ()):
        self._ids: Any = array("H")
        self._counted: Any = bytearray()
        self._weights: Any = None
        self._bounds: Any = array("q", [0])  # where examples begin and end among the tokens
        self._where: list[str] = []
        self._chosen: array[int] | None = None  # numbers of the examples; None for all
        self.extend(examples)

    def extend(self, examples: Iterable[Example]) -> None:
        """Add examples."""
        for example in examples:
            self.add(example)

    def take(self, numbers: Iterable[int]) -> Examples:
        """Return some of the examples, in the order of their numbers, without copying tokens."""
        view = Examples()
        view._ids, view._counted, view._weights = self._ids, self._counted, self._weights
        view._bounds, view._where = self._bounds, self._where
        own = range(len(self._where)) if self._chosen is None else self._chosen
        view._chosen = array("q", (own[number] for number in numbers))
        return view

    @property
    def where(self) -> list[str]:
        """The records that the examples come from, one for each."""
        return self._where if self._chosen is None else [self._where[i] for i in self._chosen]

    @property
    def lengths(self) -> list[int]:
        """The number of tokens of each example."""
        numbers = range(len(self._where)) if self._chosen is None else self._chosen
        return [self._bounds[i + 1] - self._bounds[i] for i in numbers]

    def __len__(self) -> int:
        return len(self._where) if self._chosen is None else len(self._chosen)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        number = number if self._chosen is None else self._chosen[number]
        part = slice(self._bounds[number], self._bounds[number + 1])
        ids = self._ids[part].tolist()
        labels = [id if counted else IGNORED for id, counted in zip(ids, self._counted[part], strict=True)]
        weights = self._weights[part].tolist() if self._weights is not None else None
        plain = weights is None or all(w == 1 for w, label in zip(weights, labels, strict=True) if label != IGNORED)
        return Example(ids, labels, self._where[number], None if plain else weights)

    def save(self, folder: Path) -> None:
        """Write the arrays into a folder, for ``load``."""
        parts = {"ids": self._ids, "counted": self._counted, "bounds": self._bounds}
        if self._weights is not None:
            parts["weights"] = self._weights
        for name, values in parts.items():
            (folder / name).write_bytes(memoryview(values).cast("B"))
        facts = {"wide": self._ids.typecode == "I", "weighted": self._weights is not None, "where": self._where}
        (folder / "examples.json").write_text(json.dumps(facts, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Examples:
        """Open what ``save`` wrote. The tokens stay in the files and are read when they are used.

        Raises:
            LmfError: The files are damaged or do not fit each other.
        """
        found = cls()
        try:
            facts = json.loads((folder / "examples.json").read_text(encoding="utf-8"))
            found._where = facts["where"]
            found._ids = _mapped(folder / "ids", "I" if facts["wide"] else "H")
            found._counted = _mapped(folder / "counted", "B")
            found._bounds = _mapped(folder / "bounds", "q")
            found._weights = _mapped(folder / "weights", "f") if facts["weighted"] else None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LmfError(f"{folder} is damaged: {type(error).__name__}: {error}.") from None
        bounds, tokens = found._bounds, len(found._ids)
        fits = len(bounds) == len(found._where) + 1 and bounds[0] == 0 and bounds[-1] == tokens
        fits &= all(start <= end for start, end in itertools.pairwise(bounds))
        fits &= len(found._counted) == tokens and (found._weights is None or len(found._weights) == tokens)
        if not fits:
            raise LmfError(f"{folder} is damaged: its files do not fit each other.")
        return found

    def add(self, example: Example) -> None:
        """Add an example; its labels are its tokens or -100."""
        if example.weights is not None and self._weights is None:
            self._weights = array("f", [1.0]) * len(self._ids)
        ids = example.ids
        try:
            self._ids.fromlist(ids)  # all of them or none
        except OverflowError:
            self._ids = array("I", self._ids)
            self._ids.fromlist(ids)
        self._counted.extend(map(operator.ne, example.labels, itertools.repeat(IGNORED)))
        if self._weights is not None:
            self._weights.extend([1.0] * len(ids) if example.weights is None else example.weights)
        self._bounds.append(len(self._ids))
        self._where.append(example.where)

    def __iter__(self) -> Iterator[Example]:
        return (self[i] for i in range(len(self)))


def _mapped(file: Path, typecode: Literal["B", "H", "I", "q", "f"]) -> Any:
    """Return the numbers in a file without reading it."""
    with file.open("rb") as stream:
        if not file.stat().st_size:
            return memoryview(b"").cast(typecode)
        return memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)).cast(typecode)
