"""The thread that writes replies, and what requests ask it for."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from lmf import LmfError, Sampling
from lmf.generate.engine import Engine, Finish, Reply, Token

log = logging.getLogger("lmf.serve")


class Busy(Exception):
    """So many replies wait that no more are accepted."""


class Stopping(Exception):
    """The server is being shut down."""


@dataclass(frozen=True, slots=True)
class Part:
    """What is new of a reply.

    Attributes:
        index: Which of the replies to a request.
        text: Its next characters.
        tokens: Its next tokens, where log-probabilities are wanted.
        finish: Why it ended, if it has.
    """

    index: int
    text: str
    tokens: Sequence[Token]
    finish: Finish | None


class Ticket:
    """The replies to one request, as they come."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.loop = asyncio.get_running_loop()
        self._parts: asyncio.Queue[Part] = asyncio.Queue()
        self._told: dict[int, int] = {}  # how many tokens of each reply

    def new(self, first: int, reply: Reply, text: str) -> Part:
        """Return what is new of a reply, one of those from a number on; called by the thread that writes."""
        index = first + reply.index
        tokens = reply.tokens[self._told.get(index, 0) :]
        self._told[index] = len(reply.tokens)
        return Part(index, text, tokens, reply.finish)

    def put(self, part: Part) -> None:
        """Tell who waits."""
        self._parts.put_nowait(part)

    async def part(self) -> Part:
        """Wait for what is new."""
        return await self._parts.get()

    def cancel(self) -> None:
        """Have no more written."""
        for reply in self.replies:
            reply.cancel()


def engine_thread() -> ThreadPoolExecutor:
    """Return a thread for all that torch computes, loading the model included.

    Where two threads have computed, OpenMP (libgomp) counts the helpers of both, finds more of them than cores, and
    lets each sleep between two operations, which takes a large part of the speed of a small machine.
    """
    return ThreadPoolExecutor(1, "lmf-engine")


class Worker:
    """Writes replies in a thread of its own.

    Args:
        engine: What writes them.
        max_queue: How many replies may wait.
        thread: The thread to write in, an executor of one; one of its own by default.
    """

    def __init__(self, engine: Engine, max_queue: int, thread: ThreadPoolExecutor | None = None):
        self.engine = engine
        self._most = engine.most + max_queue
        self._open: dict[int, Reply] = {}
        self._changed = threading.Condition()
        self._deadline: float | None = None  # when what is left is given up
        self._new: list[tuple[Ticket, Part]] = []  # of the step in progress
        self._done = (thread or engine_thread()).submit(self._run)

    def submit(self, prompts: Sequence[Sequence[int]], sampling: Sampling, ticket: Ticket, **options: Any) -> None:
        """Have replies to prompts written.

        Args:
            prompts: The ids of each.
            sampling: How they are drawn.
            ticket: Is told of them.
            options: Further arguments of ``Engine.submit``.

        Raises:
            Busy: Too many wait.
            Stopping: The server ends.
            LmfError: There is no room for them.
        """
        with self._changed:
            if self._deadline is not None:
                raise Stopping
            self._open = {id(each): each for each in self._open.values() if each.finish is None}
            if len(self._open) + len(prompts) * options.get("n", 1) > self._most:
                raise Busy
            try:
                for prompt in prompts:
                    show = functools.partial(self._show, ticket, len(ticket.replies))
                    ticket.replies += self.engine.submit(prompt, sampling, show=show, **options)
            except LmfError:
                ticket.cancel()
                raise
            self._open |= {id(each): each for each in ticket.replies}
            self._changed.notify()

    @property
    def writing(self) -> int:
        """Replies that are being written."""
        return len(self.engine.active)

    @property
    def waiting(self) -> int:
        """Replies that were not begun."""
        return max(0, sum(each.finish is None for each in list(self._open.values())) - self.writing)

    @property
    def ending(self) -> bool:
        """Whether no more requests are accepted."""
        return self._deadline is not None

    def stop(self, seconds: float) -> None:
        """Accept no more requests, and give up what is not written in so many seconds; returns at once."""
        with self._changed:
            self._deadline = time.monotonic() + seconds
            self._changed.notify()

    def join(self, seconds: float) -> None:
        """Wait for the end."""
        wait([self._done], seconds)

    def _run(self) -> None:
        while self._wait():
            try:
                self.engine.step()
            except Exception:  # whatever a model raises: the server goes on with the next request
                log.exception("the engine failed; the replies in progress are given up")
                self._give_up()
            self._tell()
        self._give_up()
        self._tell()

    def _wait(self) -> bool:
        """Wait for something to do; return False when it is time to end."""
        with self._changed:
            while True:
                idle = not (self.engine.active or self.engine.waiting)
                if self._deadline is not None and (idle or time.monotonic() >= self._deadline):
                    return False
                if not idle:
                    return True
                self._changed.wait()

    def _show(self, ticket: Ticket, first: int, reply: Reply, text: str) -> None:
        self._new.append((ticket, ticket.new(first, reply, text)))

    def _tell(self) -> None:
        """Hand what a step has written to those who wait: all at once, for each time costs a switch of threads."""
        new, self._new = self._new, []
        if new:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                new[0][0].loop.call_soon_threadsafe(_put, new)

    def _give_up(self) -> None:
        for reply in self.engine.abandon():
            if reply.show:
                reply.show(reply, "")


def _put(new: Sequence[tuple[Ticket, Part]]) -> None:
    for ticket, part in new:
        ticket.put(part)
