"""Work of the main process in a thread, while the training goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

from ..parallel.processes import Processes


class Background:
    """One piece of work at a time, in the main process of a run; in the others there is none.

    Args:
        processes: The processes of the run.
    """

    def __init__(self, processes: Processes):
        self.processes = processes
        self._threads = ThreadPoolExecutor(1, "lmf-saving")
        self._work: Future[None] | None = None

    def begin(self, work: Callable[[], None]) -> None:
        """Start work; what was started before has been waited for."""
        if self.processes.main:
            self._work = self._threads.submit(work)

    @property
    def failed(self) -> bool:
        """Whether work has ended in an error; ``finish`` raises it."""
        return self._work is not None and self._work.done() and self._work.exception() is not None

    def finish(self) -> None:
        """Wait for the work; all processes together.

        Raises:
            LmfError: It has failed.
        """
        work, self._work = self._work, None
        self.processes.on_main(lambda: work and work.result())

    def settle(self) -> None:
        """Wait for the work, whatever comes of it, without the other processes."""
        if self._work:
            wait([self._work])

    def close(self) -> None:
        """Wait for the work and end the thread."""
        self._threads.shutdown()
