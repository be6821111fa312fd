"""A file of lines that goes on where it stopped.

Its first line says what was asked for. One process at a time adds lines of JSON to it; a line that was cut while being
written is taken away by the next.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from .config import flag
from .errors import ConfigError, LmfError


class Journal:
    """An open journal.

    Args:
        file: The file.
        asked: What is asked for, by name: JSON values.
        stream: The file, open to read and to add to.
    """

    def __init__(self, file: Path, asked: Mapping[str, Any], stream: IO[str]):
        self.file, self.asked, self.stream = file, asked, stream
        self.header = line({"asked": asked})

    def begin_anew(self) -> None:
        """Forget all that is there."""
        self.stream.truncate(0)

    def lines(self) -> Iterator[tuple[int, Any]]:
        """Yield the number and the value of each line that is there, from 2 on; then lines can be added.

        Raises:
            ConfigError: The file was begun with other settings.
            LmfError: It is damaged, or is something else.
        """
        stream = self.stream
        stream.seek(0)
        first = stream.readline()
        if not first.endswith("\n") and self.header.startswith(first):
            stream.truncate(0)
            stream.write(self.header)
            stream.flush()
            return
        self._check_asked(first)
        end, number = stream.tell(), 1
        while (text := stream.readline()).endswith("\n"):
            number += 1
            try:
                value = json.loads(text)
            except ValueError:
                raise self.foreign(number) from None
            end = stream.tell()
            yield number, value
        stream.truncate(end)
        stream.seek(end)

    def add(self, value: Any) -> None:
        """Add a line."""
        self.stream.write(line(value))
        self.stream.flush()

    def foreign(self, number: int) -> LmfError:
        """Return what to raise for a line that nobody here wrote."""
        return LmfError(f"{self.file}:{number}: not a line that was written here. --force begins anew.")

    def _check_asked(self, first: str) -> None:
        try:
            before = dict(json.loads(first)["asked"])
        except (ValueError, KeyError, TypeError):
            raise LmfError(f"{self.file} is no file that lmf began; move it away.") from None
        now = json.loads(self.header)["asked"]
        for name in [*now, *before]:
            if before.get(name) != now.get(name):
                called = "MODEL" if name == "model" else flag(name)
                raise ConfigError(
                    f"{self.file} was begun with {called} {before.get(name)!r}, not {now.get(name)!r}. Give the same "
                    "to go on, or --force to begin anew."
                )


@contextlib.contextmanager
def journal(file: Path, asked: Mapping[str, Any]) -> Iterator[Journal]:
    """Open a journal for this process alone; at the end it is removed if nothing but its first line is there.

    Raises:
        LmfError: Another process has it, or it cannot be written.
    """
    with file.open("a+", encoding="utf-8", newline="\n") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LmfError(f"{file} is being written by another process. Wait for it, or name another --out.") from None
        found = Journal(file, asked, stream)
        try:
            yield found
        except OSError as error:
            raise LmfError(f"{file} cannot be written: {error.strerror or error}. The same command goes on.") from None
        finally:
            stream.seek(0)
            if stream.readline() in ("", found.header) and not stream.readline():
                file.unlink()


def line(value: Any) -> str:
    """Return a value as a line of JSON."""
    return json.dumps(value, ensure_ascii=False) + "\n"
