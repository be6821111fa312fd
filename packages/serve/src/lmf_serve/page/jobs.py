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

LMF = (sys.executable, "-P", "-m", "lmf_cli")  # nothing is imported from the current folder
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
        self._stopped = False
        self._said: deque[str] = deque(maxlen=LINES)
        self._process = subprocess.Popen(
            [*LMF, *arguments],
            start_new_session=True,  # Ctrl-C in the terminal is for the page, which passes it on once
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
    def said(self) -> str:
        """What it has said."""
        return "".join(self._said)

    def stop(self) -> None:
        """Interrupt it as Ctrl-C does, once: a run finishes its step and saves; a second time would end it at once."""
        if self._process.poll() is None and not self._stopped:
            self._stopped = True
            self._process.send_signal(signal.SIGINT)

    def close(self, patience: float = PATIENCE) -> None:
        """Interrupt it, if that is not done, and wait for its end; after so many seconds it is killed."""
        self.stop()
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()

    def _read(self) -> None:
        assert self._process.stdout
        with self._process.stdout as lines:
            self._said.extend(lines)


class Jobs:
    """All commands of a page, so that none goes on without it."""

    def __init__(self) -> None:
        self._all: list[Job] = []
        self._lock = threading.Lock()

    def start(self, arguments: Sequence[str], environment: Mapping[str, str] = MappingProxyType({})) -> Job:
        """Start a command."""
        with self._lock:
            job = Job(arguments, environment)
            self._all = [*(each for each in self._all if each.running), job]
            return job

    def close(self) -> None:
        """End them all."""
        for job in self._all:
            job.stop()
        for job in self._all:
            job.close()


def command_of(arguments: Sequence[str]) -> str:
    """Return what to type for a command."""
    return f"lmf {shlex.join(arguments)}"
