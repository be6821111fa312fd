"""Data files as text: opens them, unpacks gzip, and refuses what is not UTF-8, each with its own cause."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from .errors import DataError

Report = Callable[[int, str], None]  # is told a line and what is wrong with the record there
BLANK = " \t\r\n"  # the white space of JSON; str.strip would also take U+0085 and U+2028


def lines(path: Path, report: Report) -> Iterator[tuple[int, str]]:
    r"""Yield (number, text) of every line that is not blank; lines end with ``\n`` only.

    Raises:
        DataError: The file cannot be read. A line that is not text is reported instead.
    """
    offset = 0
    with _opened(path) as stream:
        for number, raw in enumerate(stream, 1):
            try:
                text = _decode(raw, offset)
            except _NotText as error:
                report(number, str(error))
            else:
                if number == 1:
                    text = text.removeprefix("\ufeff")
                if text.strip(BLANK):
                    yield number, text
            offset += len(raw)


def whole(path: Path) -> str:
    """Return the text of a file without its byte order mark.

    Raises:
        DataError: The file cannot be read, or is not text.
    """
    with _opened(path) as stream:
        raw = stream.read()
    try:
        return _decode(raw).removeprefix("\ufeff")
    except _NotText as error:
        line = raw.count(b"\n", 0, error.position) + 1
        raise DataError(f"{path}:{line}: {error}") from None


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with _guarded(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _NotText(Exception):
    def __init__(self, position: int, cause: str):
        super().__init__(cause)
        self.position = position  # bytes from the start of what was decoded


def _decode(raw: bytes, offset: int = 0) -> str:
    """Decode bytes that stand ``offset`` bytes into their file."""
    position = raw.find(b"\0")
    if position >= 0:
        where = offset + position
        raise _NotText(position, f"byte {where} of the file is NUL: the file is damaged; fetch or write it again.")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        what = f"byte {offset + error.start} of the file (0x{raw[error.start]:02x})"
        raise _NotText(error.start, f"{what} is not UTF-8; convert the file to UTF-8.") from None


@contextmanager
def _guarded(path: Path) -> Iterator[BufferedReader]:
    """Open a file so that whatever goes wrong while it is read is a DataError."""
    try:
        with path.open("rb") as file:
            yield file
    except EOFError:
        raise DataError(f"{path} is cut: its gzip data end too early; fetch it again.") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} holds damaged gzip data ({error}); fetch it again.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from None


@contextmanager
def _opened(path: Path) -> Iterator[BufferedReader | gzip.GzipFile]:
    """Open a file, unpacked, if its first bytes look like text."""
    with _guarded(path) as file:
        stream: BufferedReader | gzip.GzipFile = file
        packed = path.suffix.lower() == ".gz"
        head = file.peek(_HEAD)
        if packed and head.startswith(_GZIP):
            stream = gzip.GzipFile(fileobj=file)
            head = stream.peek(_HEAD)
            if head.startswith(_GZIP):
                raise DataError(f"{path} is packed by gzip twice; unpack it once.")
        if not head:
            raise DataError(f"{path} is empty.")
        cause = _foreign(head)
        if cause:
            raise DataError(f"{path} {cause}.")
        if packed and stream is file:
            raise DataError(f"{path} is called .gz but is not gzip data: it starts with {head[:16]!r}.")
        yield stream


def _foreign(head: bytes) -> str:
    """Return what a file is that starts with ``head``, if that is known not to be UTF-8 text."""
    for magic, cause in _MAGIC.items():
        if head.startswith(magic):
            return cause
    if len(head) >= 4 and sorted((any(head[0:4:2]), any(head[1:4:2]))) == [False, True]:
        return "is UTF-16 text; convert it to UTF-8"  # without a byte order mark: every other byte is NUL
    return ""


_HEAD = 512  # bytes
_GZIP = b"\x1f\x8b"
_MAGIC = {
    b"version https://git-lfs": "is a git-lfs pointer, not the data; `git lfs pull` fetches them",
    _GZIP: "is gzip data but is not called .gz; rename it",
    b"PK\x03\x04": "is a ZIP archive; unpack it",
    b"PAR1": "is a Parquet file; convert it to JSON Lines",
    b"\xff\xfe\0\0": "is UTF-32 text; convert it to UTF-8",
    b"\xff\xfe": "is UTF-16 text; convert it to UTF-8",
    b"\xfe\xff": "is UTF-16 text; convert it to UTF-8",
}
