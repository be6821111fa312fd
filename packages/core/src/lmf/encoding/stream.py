"""Examples of data that are read while they are learned."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..conversation import Record
from .encoder import Example
from .examples import Examples
from .fit import Survey


@dataclass(frozen=True, slots=True)
class Position:
    """How far a run has come in its data.

    Attributes:
        passed: Whole passes over the data.
        block: Number of the block in this pass.
        used: Examples of this block that were learned.
    """

    passed: int = 0
    block: int = 0
    used: int = 0


class Stream:
    """Examples without end, for one block of records after the other.

    The order is a function of the seed and the place, so a run that is resumed at a position
    goes on as it would have.

    Args:
        records: Begins a pass over the records.
        encode: Brings a block of records to examples.
        block: Records in a block; they are read and shuffled at a time.
        seed: Decides the order within each block.

    Attributes:
        position: Behind the examples that ``batches`` gave last; it may be set before.
        read: Number of records read since the start or the resumption.
        dropped: Number of examples of them that were left out.
    """

    def __init__(
        self,
        records: Callable[[], Iterator[Record]],
        encode: Callable[[Sequence[Record]], tuple[Examples, Survey]],
        block: int,
        seed: int,
    ):
        self._records, self._encode, self._size, self._seed = records, encode, block, seed
        self.position = Position()
        self.read = self.dropped = 0
        self._reader = records()
        self._next = 0, 0  # the pass and the block that the reader comes to next
        self._first: tuple[Examples, Survey] | None = self._following()  # what is wrong with it shows at once

    @property
    def survey(self) -> Survey:
        """What the first block is like; to be asked for before ``batches``."""
        assert self._first
        return self._first[1]

    def batches(self, size: int) -> Iterator[list[Example]]:
        """Yield the examples of one optimizer step after the other, from the position on.

        Raises:
            DataError: A record cannot be used, or a block has too many that are dropped.
        """
        batch: list[Example] = []
        passed, block, used = self.position.passed, self.position.block, self.position.used
        while True:
            found = self._block(passed, block)
            if found is None:
                passed, block, used = passed + 1, 0, 0
                continue
            order = list(range(len(found)))
            random.Random(f"{self._seed}:{passed}:{block}").shuffle(order)
            for at in range(used, len(order)):
                batch.append(found[order[at]])
                if len(batch) == size:
                    self.position = Position(passed, block, at + 1)
                    yield batch
                    batch = []
            block, used = block + 1, 0

    def _block(self, passed: int, block: int) -> Examples | None:
        """Return a block of a pass, or None behind the last one."""
        first, self._first = self._first, None
        if first and (passed, block) == (0, 0):
            return first[0]
        if self._next[0] != passed or self._next[1] > block:
            self._reader, self._next = self._records(), (passed, 0)
        for _ in itertools.islice(self._reader, (block - self._next[1]) * self._size):
            pass
        self._next = passed, block
        found = self._following()
        return found[0] if found else None

    def _following(self) -> tuple[Examples, Survey] | None:
        records = list(itertools.islice(self._reader, self._size))
        if not records:
            return None
        self._next = self._next[0], self._next[1] + 1
        self.read += len(records)
        found = self._encode(records)
        self.dropped += sum(found[1].dropped.values())
        return found
