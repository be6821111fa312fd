"""Guards around a run: one run in a folder, and a signal that ends it between two steps."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from .errors import LmfError
from .runs import LOCK_FILE

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold a folder for this process alone; the lock ends with the process, however it ends.

    The folder is made if need be, and removed if nothing is in it at the end.

    Raises:
        LmfError: Another process holds it, or it cannot be made.
    """
    file = folder / LOCK_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LmfError(f"{folder} cannot be made: {error.strerror}. Choose another --output.") from None
    with file.open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            raise LmfError(
                f"{folder} is in use by another run (process {stream.read().strip() or 'unknown'}).\n"
                "Wait for it, or choose another --output."
            ) from None
        except OSError as error:
            raise LmfError(f"{file} cannot be locked: {error.strerror}. Choose an --output on another disk.") from None
        stream.truncate(0)
        stream.write(f"{os.getpid()}\n")
        stream.flush()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # a folder that is not empty stays
                file.unlink()
                folder.rmdir()


def ignore_signals() -> None:
    """Let no signal but SIGKILL end this process any more, which is about to end."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


class Stop:
    """Notes the first signal, so that the step in progress is finished; the second one ends at once.

    Attributes:
        signal: The signal that came, or None.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.signal = number

    @contextlib.contextmanager
    def listening(self) -> Iterator[Stop]:
        """Listen to the signals, but not to those that are ignored, as ``nohup`` does with SIGHUP.

        Outside the main thread there are none to listen to.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._note) for number in heard}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
