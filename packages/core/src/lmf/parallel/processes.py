"""The processes of a run, and what they do together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator

from ..errors import LmfError

T = TypeVar("T")
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes of a run, of which this is one; all must call the same methods in the same order.

    Attributes:
        rank: The number of this process, from 0.
        count: How many there are.
        device: Where this one computes.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = CPU

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes and speaks for all."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, by their numbers."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return found

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum of the tensors of all processes."""
        if self.count == 1:
            return values
        values = values.clone()
        dist.all_reduce(values)
        return values

    def largest(self, number: int) -> int:
        """Return the largest of the numbers of all processes."""
        if self.count == 1:
            return number
        value = torch.tensor(number, device=self.device)
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return int(value)

    def each(self, work: Callable[[], T]) -> T:
        """Do work in every process and return what it returns here. Nobody goes on where one has failed.

        Raises:
            LmfError: The work failed in this process or in another one.
        """
        result, own = None, None
        try:
            result = work()
        except LmfError as error:
            own = error
        problems = self.gather(own and str(own))
        if own:
            raise own
        for rank, problem in enumerate(problems):
            if problem:
                raise LmfError(f"Process {rank}: {problem}")
        return result  # pyright: ignore[reportReturnType] a failure was raised

    def on_main(self, work: Callable[[], Any]) -> None:
        """Do work in the main process while the others wait, and fail in all of them where it fails.

        Raises:
            LmfError: The work failed.
        """
        self.each(work if self.main else lambda: None)

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            dist.barrier()


def lost(error: BaseException) -> bool:
    """Tell whether an error means that another process is gone, or does not answer."""
    text = str(error)
    return isinstance(error, dist.DistError | TimeoutError) or any(name in text for name in ("gloo", "NCCL", "store"))


def processes_of(accelerator: Accelerator) -> Processes:
    """Return the processes that have met."""
    return Processes(accelerator.process_index, accelerator.num_processes, accelerator.device)


ALONE = Processes()
