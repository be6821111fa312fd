"""Commands of ``lmf`` that run beside the page."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from types import MappingProxyType

LINES = 2_000  # that are kept of what a command says
PATIENCE = 30.0  # seconds that a run may take to save what it has when the page ends


class Job:
    """A command that runs.

    Args:
        arguments: What stands behind ``lmf``.
        environment: More variables for it.
    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str] = MappingProxyType({})):
        self.arguments = list(arguments)
        self.began = time.time()
        self._ended: float | None = None
        self._said: deque[str] = deque(maxlen=LINES)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lmf_cli", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def command(self) -> str:
        """What to type for the same."""
        return command_of(self.arguments)

    @property
    def running(self) -> bool:
        """Whether it has not ended, or not all is read of what it said."""
        return self._process.poll() is None or self._reader.is_alive()

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.poll()

    @property
    def quiet(self) -> float:
        """Seconds since it ended; 0 while it runs."""
        return 0.0 if self.running or self._ended is None else time.monotonic() - self._ended

    @property
    def said(self) -> str:
        """What it has said."""
        return "".join(self._said)

    def stop(self) -> None:
        """Interrupt it as Ctrl-C does: a run finishes its step and saves."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)

    def close(self, patience: float = PATIENCE) -> None:
        """Interrupt it and wait for its end; after so many seconds it is killed."""
        self.stop()
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self._said.append(line)
        self._process.wait()
        self._ended = time.monotonic()


class Jobs:
    """All commands of a page, so that none goes on without it."""

    def __init__(self) -> None:
        self._all: list[Job] = []

    def start(self, arguments: Sequence[str], environment: Mapping[str, str] = MappingProxyType({})) -> Job:
        """Start a command."""
        self._all = [job for job in self._all if job.running]
        self._all.append(Job(arguments, environment))
        return self._all[-1]

    def close(self) -> None:
        """End them all."""
        for job in self._all:
            job.stop()
        for job in self._all:
            job.close()


def command_of(arguments: Sequence[str]) -> str:
    """Return what to type for a command."""
    return f"lmf {shlex.join(arguments)}"
