"""Archives that nobody vouches for: unpacked whole into a folder of their own, or refused.

An archive is refused for one bad entry, also where that entry was not asked for. Nothing is
written outside a temporary folder beside the destination, which takes its place by rename.
"""

from __future__ import annotations

import bz2
import contextlib
import fnmatch
import gzip
import io
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any

from ..errors import DataError

ENTRIES = 10_000
SIZE = 20 << 30  # bytes, unpacked
RATIO = 200  # unpacked bytes for one packed byte; deflate itself cannot do better than 1030
FREE = 100 << 20  # unpacked bytes below which no ratio counts
TAR = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
SUFFIXES = (*TAR, ".zip", ".gz")

_CHUNK = 1 << 20  # bytes; a tar header longer than this is an attack
_WINDOW = 128 << 20  # bytes of memory that a Zstandard frame may ask for
_END = bytes(tarfile.BLOCKSIZE)


def unpack(
    archive: Path,
    folder: Path,
    members: Sequence[str] = (),
    *,
    entries: int = ENTRIES,
    size: int = SIZE,
    ratio: int = RATIO,
) -> list[Path]:
    """Unpack an archive into a new folder.

    Args:
        archive: The archive; its name says which kind it is, see ``SUFFIXES``.
        folder: Where its files come; it must not exist, or be empty.
        members: Globs of the names to take, ``*`` also matching ``/``; everything by default.
        entries: The most entries that it may have.
        size: The most bytes that it may unpack to.
        ratio: The most bytes that one packed byte may unpack to, beyond the first 100 MB.

    Returns:
        The files, sorted.

    Raises:
        DataError: The archive is damaged, hostile, or of no known kind, or holds nothing that was
            asked for. Then the folder is as it was.
    """
    read = _reader(archive)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".partial"))
    try:
        partial.chmod(0o755)
        with _explained(archive):
            limits = _Limits(archive, entries, size, ratio)
            taken = _write(read(archive, limits), partial, members)
        if not taken:
            wanted = f" that is called {' or '.join(members)}" if members else ""
            raise DataError(f"{archive.name} holds no file{wanted}.")
        _place(partial, folder)
        return sorted(folder / name for name in taken)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class _Limits:
    """Counts what comes out of an archive, and stops it where it gets too much."""

    def __init__(self, archive: Path, entries: int, size: int, ratio: int):
        self._packed = archive.stat().st_size
        self._entries, self._size, self._ratio = entries, size, ratio
        self._count = self._bytes = 0
        self._names: dict[str, bool] = {}  # folded name -> whether it is a file

    def entry(self, name: str, file: bool) -> str:
        """Count one entry, and return its name with ``/`` between plain parts; "" for the top folder."""
        self._count += 1
        if self._count > self._entries:
            raise DataError(f"it has more than {self._entries:,} entries.")
        clean = _clean(name)
        folded = unicodedata.normalize("NFC", clean).casefold()  # one file for many a file system
        if folded in self._names and (file or self._names[folded]):
            raise DataError(f"it has the name {clean!r} twice.")
        for above in PurePosixPath(folded).parents:
            if self._names.get(str(above)):
                raise DataError(f"{clean!r} lies under a name that is a file.")
            self._names.setdefault(str(above), False)
        self._names[folded] = file
        return clean

    def data(self, count: int) -> None:
        """Count unpacked bytes."""
        self._bytes += count
        if self._bytes > self._size:
            raise DataError(f"it unpacks to more than {self._size:,} bytes.")
        if self._bytes > max(FREE, self._ratio * self._packed):
            raise DataError(f"it unpacks to more than {self._ratio} times its size, as only an attack does.")


def _clean(name: str) -> str:
    """Return a name that cannot lead out of a folder, on any system."""
    problem = ""
    if any(ord(char) < 32 or ord(char) == 127 for char in name):
        problem = "has a control character in its name"
    elif "\\" in name:
        problem = "has a backslash in its name"
    elif name.startswith("/") or re.match(r"[A-Za-z]:", name):
        problem = "has an absolute path"
    elif ".." in name.split("/"):
        problem = "leads out of the folder"
    elif any(0xD800 <= ord(char) <= 0xDFFF for char in name):
        problem = "has a name that is not UTF-8"
    elif not name:
        problem = "has no name"
    if problem:
        raise DataError(f"the entry {name[:200]!r} {problem}.")
    clean = str(PurePosixPath(name))
    return "" if clean == "." else clean


def _write(found: Iterator[tuple[str, Iterator[bytes]]], folder: Path, members: Sequence[str]) -> list[str]:
    """Write the files that were asked for, and read the others, so that all are checked."""
    taken = []
    for name, chunks in found:
        if members and not any(fnmatch.fnmatchcase(name, member) for member in members):
            for _ in chunks:
                pass
            continue
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as stream:
            for chunk in chunks:
                stream.write(chunk)
        taken.append(name)
    return taken


def _place(partial: Path, folder: Path) -> None:
    for file in partial.rglob("*"):
        with contextlib.suppress(OSError), file.open("rb") as stream:  # a folder cannot be opened, and need not be
            os.fsync(stream.fileno())
    try:
        partial.rename(folder)
    except OSError as error:
        raise DataError(f"{folder} cannot take the files: {error.strerror}. Move it away.") from None


def _reader(archive: Path) -> Any:
    name = archive.name.lower()
    if name.endswith(".zip"):
        return _zip
    if name.endswith(TAR):
        return _tar
    if name.endswith(".gz"):
        return _gzip
    raise DataError(f"{archive.name} is not an archive that lmf can unpack; those end with {', '.join(SUFFIXES)}.")


def _gzip(archive: Path, limits: _Limits) -> Iterator[tuple[str, Iterator[bytes]]]:
    with gzip.open(archive) as stream:
        yield limits.entry(archive.name[:-3], True), _chunks(stream, limits)


def _zip(archive: Path, limits: _Limits) -> Iterator[tuple[str, Iterator[bytes]]]:
    with zipfile.ZipFile(archive) as whole:
        infos = whole.infolist()
        for info in infos:
            kind = stat.S_IFMT(info.external_attr >> 16)  # Unix's, 0 where another system wrote it
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise DataError(f"the entry {info.orig_filename!r} is neither a file nor a folder.")
            if info.flag_bits & 1:
                raise DataError(f"the entry {info.orig_filename!r} is encrypted.")
            limits.entry(info.orig_filename, not info.is_dir())
        for info in infos:
            if not info.is_dir():
                with whole.open(info) as stream:
                    yield _clean(info.orig_filename), _chunks(stream, limits)


def _tar(archive: Path, limits: _Limits) -> Iterator[tuple[str, Iterator[bytes]]]:
    with _decompressed(archive) as packed:
        stream = _Forward(packed, limits)
        with tarfile.open(fileobj=stream, mode="r:", errors="surrogateescape") as whole:
            while info := whole.next():
                vars(whole)["members"] = []  # it would keep them all
                name = limits.entry(info.name, not info.isdir())
                if info.isdir():
                    continue
                if not info.isreg() or info.issparse():
                    raise DataError(f"the entry {name!r} is {_kind(info)}.")
                data = whole.extractfile(info)
                assert data is not None  # a regular file has data
                yield name, _whole(data, info.size)
        if stream.last != _END:  # tarfile also stops, without a word, where a header is damaged or missing
            raise DataError("it is cut or damaged: its end is missing.")
        stream.drain()


def _kind(info: tarfile.TarInfo) -> str:
    kinds = {"issym": "a symbolic link", "islnk": "a hard link", "isfifo": "a pipe", "isdev": "a device"}
    return next((kind for test, kind in kinds.items() if getattr(info, test)()), "no plain file")


def _whole(stream: IO[bytes], size: int) -> Iterator[bytes]:
    left = size
    while left > 0:
        chunk = stream.read(min(left, _CHUNK))
        if not chunk:
            raise EOFError
        left -= len(chunk)
        yield chunk


def _chunks(stream: Any, limits: _Limits) -> Iterator[bytes]:
    while chunk := stream.read(_CHUNK):
        limits.data(len(chunk))
        yield chunk


class _Forward(io.RawIOBase):
    """What tarfile reads from: it counts, goes forward only, and gives no long reads.

    Attributes:
        last: What the last read gave.
    """

    def __init__(self, stream: IO[bytes], limits: _Limits):
        self._stream, self._limits = stream, limits
        self._position = 0
        self.last = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        if not 0 <= size <= _CHUNK:
            raise DataError(f"one of its headers claims {size:,} bytes.")
        self.last = self._stream.read(size)
        self._limits.data(len(self.last))
        self._position += len(self.last)
        return self.last

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        if whence != io.SEEK_SET or offset < self._position:
            raise DataError("one of its headers points backward.")
        while self._position < offset:
            if not self.read(min(offset - self._position, _CHUNK)):
                raise EOFError
        return self._position

    def drain(self) -> None:
        """Read to the end, so that a checksum there is checked."""
        while self.read(_CHUNK):
            pass


@contextlib.contextmanager
def _decompressed(archive: Path) -> Iterator[IO[bytes]]:
    with archive.open("rb") as file:
        head = file.peek(6)[:6]
        opened = next((each for magic, each in _PACKED.items() if head.startswith(magic)), contextlib.nullcontext)
        with opened(file) as stream:
            yield stream


@contextlib.contextmanager
def _zstandard(file: IO[bytes]) -> Iterator[IO[bytes]]:
    try:
        import zstandard
    except ImportError:
        raise DataError("it is packed by Zstandard, and that needs a library: pip install zstandard") from None
    try:
        yield zstandard.ZstdDecompressor(max_window_size=_WINDOW).stream_reader(file, read_across_frames=True)
    except zstandard.ZstdError as error:
        raise ValueError(error) from None


_PACKED: dict[bytes, Any] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
    b"\x28\xb5\x2f\xfd": _zstandard,
}
_DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError, struct.error),
    *(ValueError, OverflowError, RuntimeError),
)


@contextlib.contextmanager
def _explained(archive: Path) -> Iterator[None]:
    """Turn whatever the libraries say of a bad archive into one kind of error, with its name."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{archive.name} is refused: {error}") from None
    except EOFError:
        raise DataError(f"{archive.name} is cut: it ends too early. Fetch it again.") from None
    except _DAMAGE as error:
        raise DataError(f"{archive.name} is damaged: {str(error).rstrip('.')}. Fetch it again.") from None
    except OSError as error:
        if error.errno is None:  # bz2 has no error of its own
            raise DataError(f"{archive.name} is damaged: {error}. Fetch it again.") from None
        raise DataError(f"{archive.name} cannot be unpacked: {error.strerror}.") from None
