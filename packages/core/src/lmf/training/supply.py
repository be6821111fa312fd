"""Which examples each optimizer step gets: of data that are there whole, and of a stream."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any, Protocol

from ..encoding.encoder import Example
from ..encoding.examples import Examples
from ..encoding.stream import Position, Stream
from ..plan import Plan
from . import packing


class Supply(Protocol):
    """What a run asks of its training data.

    Attributes:
        steps: How many optimizer steps the run takes.
        per_epoch: Steps in a pass over the data; None if nobody knows.
    """

    steps: int
    per_epoch: int | None

    def batches(self, done: int) -> Iterator[list[Example]]:
        """Yield the examples of each step that is left after those done.

        Raises:
            DataError: A record of a stream cannot be used.
        """
        ...

    def epoch(self, done: int) -> float:
        """Return the passes over the data after so many steps."""
        ...

    def state(self) -> dict[str, int] | None:
        """Return where the run is in the data, as JSON values, if the number of the step does not say it."""
        ...

    def restore(self, state: Any) -> None:
        """Go on from a state."""
        ...

    def notes(self) -> list[str]:
        """Return what is to be told of the data at the end of the run."""
        ...


def supply_of(train: Examples | Stream, plan: Plan) -> Supply:
    """Return the supply for training data."""
    return _Streamed(train, plan) if isinstance(train, Stream) else _Whole(train, plan)


class _Whole:
    """Each pass has all examples, in an order that is a function of the seed and the pass."""

    def __init__(self, examples: Examples, plan: Plan):
        settings = plan.settings
        self._examples, self._size, self._seed = examples, settings.batch_size, settings.seed
        self._pass = packing.steps_per_epoch(len(examples), settings.batch_size)
        self.per_epoch: int | None = self._pass
        steps = round(settings.epochs * self._pass, 6)  # 1.1 epochs of 10 steps are 11.000000000000002
        self.steps = settings.steps or max(1, math.ceil(steps))

    def batches(self, done: int) -> Iterator[list[Example]]:
        return packing.batches(self._examples, self._size, self._seed, done, self.steps)

    def epoch(self, done: int) -> float:
        return round(done / self._pass, 4)

    def state(self) -> None:
        return None

    def restore(self, state: Any) -> None:
        pass

    def notes(self) -> list[str]:
        return []


class _Streamed:
    """Examples as they come; the stream itself knows its place."""

    def __init__(self, stream: Stream, plan: Plan):
        assert plan.settings.steps and plan.stream  # the plan has seen to it
        self._stream, self._records, self._size = stream, plan.stream, plan.settings.batch_size
        self.steps = plan.settings.steps
        self.per_epoch: int | None = None

    def batches(self, done: int) -> Iterator[list[Example]]:
        return itertools.islice(self._stream.batches(self._size), self.steps - done)

    def epoch(self, done: int) -> float:
        return self._stream.position.passed

    def state(self) -> dict[str, int]:
        return dataclasses.asdict(self._stream.position)

    def restore(self, state: Any) -> None:
        self._stream.position = Position(**state)

    def notes(self) -> list[str]:
        stream, records = self._stream, self._records
        told = [f"{stream.read:,} records were read, {stream.dropped:,} examples of them dropped"]
        told += [f"skipped: {bad}" for bad in records.first_bad]
        return told + ([f"{records.bad:,} bad records were left out"] if records.bad else [])
