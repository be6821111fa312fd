"""Data files as text: opens and unpacks them, and refuses what is not UTF-8, each with its own cause."""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from ..errors import DataError, LmfError

Report = Callable[[int, str], None]  # is told a line and what is wrong with the record there
BLANK = " \t\r\n"  # the white space of JSON; str.strip would also take U+0085 and U+2028
PIECE = 2**20  # bytes of a text that are read at once
STDIN = Path("<stdin>")  # what standard input is called


class Piped(io.RawIOBase):
    """A stream that can be read only once, whose hash is known when it has been read."""

    def __init__(self, stream: BinaryIO):
        self._stream = stream
        self._hash = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = cast("io.BufferedReader", self._stream).readinto1(buffer)
        self._hash.update(memoryview(buffer)[:count])
        return count

    def sha256(self) -> str:
        """Return the SHA-256 of what has been read, in hexadecimal."""
        return self._hash.hexdigest()


def standard_input() -> Piped:
    """Return what is piped to this program.

    Raises:
        DataError: It is a terminal, where a reader would wait for somebody to type.
    """
    if sys.stdin is None or sys.stdin.isatty():
        raise DataError("'-' is standard input, and nothing is piped to it; write `... | lmf ... --data -`.")
    return Piped(sys.stdin.buffer)


def lines(path: Path, report: Report, piped: Piped | None = None) -> Iterator[tuple[int, str]]:
    r"""Yield (number, text) of every line that is not blank; lines end with ``\n`` only.

    Args:
        path: The file, or what to call the stream.
        report: Is told each line that is not text.
        piped: What to read instead of a file.

    Raises:
        DataError: The file cannot be read.
    """
    offset = 0
    with _opened(path, piped) as stream:
        for number in itertools.count(1):
            raw = stream.readline()
            if not raw:
                return
            start, offset = offset, offset + len(raw)
            try:
                text = _decode(raw, start)
            except _NotText as error:
                report(number, str(error))
                continue
            del raw  # a line may be as long as its file
            if number == 1:
                text = text.removeprefix("\ufeff")
            if _SOME.search(text):
                yield number, text


def rows(path: Path) -> Iterator[str]:
    r"""Yield every line, blank ones too, with its ``\n``.

    Raises:
        DataError: The file cannot be read, or is not text.
    """
    offset = 0
    with _opened(path) as stream:
        for number, raw in enumerate(stream, 1):
            try:
                text = _decode(raw, offset)
            except _NotText as error:
                raise DataError(f"{path}:{number}: {error}") from None
            yield text.removeprefix("\ufeff") if number == 1 else text
            offset += len(raw)


def pieces(path: Path) -> Iterator[str]:
    """Yield the text of a file, without its byte order mark, in pieces of some ``PIECE`` bytes.

    Raises:
        DataError: The file cannot be read, or is not text.
    """
    offset, line, held = 0, 1, b""
    with _opened(path) as stream:
        more = True
        while more:
            read = stream.read(PIECE)
            more = bool(read)
            raw = held + read
            end = _end_of_characters(raw) if more else len(raw)
            raw, held = raw[:end], raw[end:]
            try:
                text = _decode(raw, offset)
            except _NotText as error:
                line += raw.count(b"\n", 0, error.position)
                raise DataError(f"{path}:{line}: {error}") from None
            if not offset:
                text = text.removeprefix("\ufeff")
            if text:
                yield text
            line += raw.count(b"\n")
            offset += len(raw)


def whole(path: Path) -> str:
    """Return the text of a file without its byte order mark.

    Raises:
        DataError: The file cannot be read, or is not text.
    """
    return "".join(pieces(path))


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with guarded(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sampled_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's size, its first and its last MiB, in hexadecimal: for files too large to hash."""
    part = 1 << 20
    with guarded(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        found = hashlib.sha256(f"{size}:".encode() + file.read(part))
        file.seek(max(0, size - part))
        found.update(file.read(part))
    return found.hexdigest()


def foreign(head: bytes) -> str:
    """Return what a file is that starts with ``head``, if that is known not to be UTF-8 text."""
    for magic, cause in _MAGIC.items():
        if head.startswith(magic):
            return cause
    empty = [not byte for byte in head[:4]]  # without a byte order mark: where the NUL bytes are
    if empty.count(True) == 3:
        return "is UTF-32 text; convert it to UTF-8"
    if empty in ([True, False, True, False], [False, True, False, True]):
        return "is UTF-16 text; convert it to UTF-8"
    return ""


@contextmanager
def guarded(path: Path) -> Iterator[io.BufferedReader]:
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


def _end_of_characters(raw: bytes) -> int:
    """Return where the last character ends that is whole."""
    for back in range(1, min(4, len(raw) + 1)):
        byte = raw[-back]
        if byte >= 0xC0:  # begins a character of 2, 3 or 4 bytes
            return len(raw) - back if back < 2 + (byte >= 0xE0) + (byte >= 0xF0) else len(raw)
        if byte < 0x80:
            break
    return len(raw)


@contextmanager
def _opened(path: Path, piped: Piped | None = None) -> Iterator[io.BufferedReader[Any] | gzip.GzipFile]:
    """Open a file, unpacked, if its first bytes look like text."""
    if piped:
        stream = io.BufferedReader(piped, _CHUNK)
        _check_head(path, stream.peek(_HEAD))
        yield stream
        return
    with guarded(path) as file:
        packing = _PACKINGS.get(path.suffix.lower())
        stream = file
        head = file.peek(_HEAD)
        if packing and head.startswith(packing.magics):
            stream = packing.unpack(path, file)
            head = stream.peek(_HEAD)
            if head.startswith(packing.magics):
                raise DataError(f"{path} is packed by {packing.name} twice; unpack it once.")
        _check_head(path, head)
        if packing and stream is file:
            raise DataError(
                f"{path} is called {path.suffix} but is not {packing.name} data: it starts with {head[:16]!r}."
            )
        yield stream


def _check_head(path: Path, head: bytes) -> None:
    if not head:
        raise DataError(f"{path} is empty.")
    cause = foreign(head)
    if cause:
        raise DataError(f"{path} {cause}.")


class _Zstd(io.RawIOBase):
    """Unpacks Zstandard, frame after frame, and minds whether the last one is whole."""

    def __init__(self, path: Path, file: io.BufferedReader):
        try:
            import zstandard
        except ImportError:
            raise LmfError(f"{path} needs the package zstandard: pip install 'lmf-core[data]'") from None
        self._path, self._file = path, file
        self._error = zstandard.ZstdError
        self._new = zstandard.ZstdDecompressor().decompressobj
        self._frame = self._new()
        self._fresh = True  # no byte of the frame has been read
        self._packed = b""
        self._text = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._text:
            if self._frame.eof:
                self._packed, self._frame, self._fresh = self._frame.unused_data, self._new(), True
            packed = self._packed or self._file.read(_BLOCK)
            self._packed = b""
            if not packed:
                if self._fresh:
                    return 0
                raise DataError(f"{self._path} is cut: its Zstandard data end too early; fetch it again.")
            self._fresh = False
            try:
                self._text = memoryview(self._frame.decompress(packed))
            except self._error as error:
                raise DataError(f"{self._path} holds damaged Zstandard data ({error}); fetch it again.") from None
        count = min(len(buffer), len(self._text))
        buffer[:count], self._text = self._text[:count], self._text[count:]
        return count


class _Packing(NamedTuple):
    """A way to pack a file.

    Attributes:
        name: What it is called.
        magics: The bytes with which its files may begin.
        unpack: Returns the unpacked stream.
    """

    name: str
    magics: tuple[bytes, ...]
    unpack: Callable[[Path, io.BufferedReader], Any]


_SOME = re.compile(f"[^{BLANK}]")
_HEAD = 512  # bytes
_CHUNK = 2**17  # bytes
_BLOCK = 2**12  # packed bytes; a block of 4 can unpack to 128 KiB, so this bounds the memory
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_SKIPPED = tuple(bytes((first, 0x2A, 0x4D, 0x18)) for first in range(0x50, 0x60))  # frames of notes (RFC 8878, 3.1.2)
_PACKINGS = {
    ".gz": _Packing("gzip", (_GZIP,), lambda path, file: gzip.GzipFile(fileobj=file)),
    ".zst": _Packing("Zstandard", (_ZSTD, *_SKIPPED), lambda path, file: io.BufferedReader(_Zstd(path, file), _CHUNK)),
}
PACKED = tuple(_PACKINGS)  # suffixes
_MAGIC = {
    b"version https://git-lfs": "is a git-lfs pointer, not the data; `git lfs pull` fetches them",
    _GZIP: "is gzip data but is not called .gz; rename it",
    _ZSTD: "is Zstandard data but is not called .zst; rename it",
    b"PK\x03\x04": "is a ZIP archive; unpack it",
    b"PAR1": "is a Parquet file; call it .parquet",
    b"ARROW1": "is an Arrow file; call it .arrow",
    b"\xff\xff\xff\xff": "is an Arrow stream; call it .arrow",
    b"\0\0\xfe\xff": "is UTF-32 text; convert it to UTF-8",
    b"\xff\xfe\0\0": "is UTF-32 text; convert it to UTF-8",
    b"\xff\xfe": "is UTF-16 text; convert it to UTF-8",
    b"\xfe\xff": "is UTF-16 text; convert it to UTF-8",
}
