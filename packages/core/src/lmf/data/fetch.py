"""Downloads: a file is there whole and checked under its name, or not at all.

What comes is written under a temporary name beside the destination, checked, synced and renamed.
A connection that breaks is taken up where it ended, a few times.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import http.client
import os
import re
import secrets
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from io import BufferedRandom
from pathlib import Path
from typing import IO, Any
from urllib.parse import SplitResult, urljoin, urlsplit

from ..errors import ConfigError, DataError

Progress = Callable[[int, int | None], None]
"""Is told how many bytes are there, and how many there will be where that is known."""

HUB = "https://huggingface.co"
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")

_WAITS = (1.0, 2.0, 4.0, 8.0)  # seconds before each new attempt in a row that got no further
_TIMEOUT = 30.0  # seconds without a byte
_CHUNK = 1 << 20  # bytes
_REDIRECTS = 10
_LOCAL = ("localhost", "127.0.0.1", "::1")
_PASSING = (408, 425, 429, 500, 502, 503, 504)  # HTTP codes of troubles that pass


def download(
    url: str,
    path: Path,
    sha256: str | None = None,
    bytes: int | None = None,
    progress: Progress | None = None,
    *,
    allow_http: bool = False,
) -> Path:
    """Download one file.

    Several downloads to one path may run at a time; each ends well, and the last one stays.
    ``HF_ENDPOINT`` takes the place of https://huggingface.co, ``HF_TOKEN`` is sent there and
    nowhere else, and ``HF_HUB_OFFLINE=1`` or ``HF_DATASETS_OFFLINE=1`` forbid it all.

    Args:
        url: https, or file, or http on this machine.
        path: The file to make or replace.
        sha256: What its SHA-256 must be, in hexadecimal.
        bytes: What its length must be.
        progress: Is told how far it is.
        allow_http: Take http from anywhere, and follow redirects to it.

    Raises:
        ConfigError: The address or the environment forbids the download.
        DataError: It failed; what was at ``path`` before is still there.
    """
    url = _address(url)
    _check_scheme(url, allow_http)
    source = _File(url) if _split(url).scheme == "file" else _Web(url, allow_http)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _part(path) as part:
            _receive(source, part, bytes, progress or (lambda done, total: None))
            part.flush()
            _check(source.shown, part, sha256, bytes, path.suffix)
            os.fsync(part.fileno())
            Path(part.name).replace(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(f"The disk of {path.parent} is full; {source.shown} was not kept. Make room.") from None
        raise DataError(f"{path} cannot be written: {error.strerror or error}.") from None
    return path


def _address(url: str) -> str:
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    if endpoint and (url == HUB or url.startswith(f"{HUB}/")):
        if _split(endpoint).scheme not in ("https", "http"):
            raise ConfigError(f"HF_ENDPOINT is {endpoint!r}; it must be an address such as {HUB}.")
        return endpoint + url.removeprefix(HUB)
    return url


def _check_scheme(url: str, allow_http: bool) -> None:
    parts = _split(url)
    if parts.scheme == "file":
        return
    if parts.scheme not in ("http", "https") or not parts.hostname or re.search(r"[^!-~]", url):
        raise ConfigError(f"{url!r} is not an address to download from: it must begin with https:// or file://.")
    if parts.scheme == "http" and parts.hostname not in _LOCAL and not allow_http:
        raise ConfigError(f"{shown(url)} is plain http, which anyone on the way can change; it needs --allow-http.")
    for variable in OFFLINE:
        if os.environ.get(variable, "").strip().lower() in ("1", "on", "yes", "true"):
            raise ConfigError(f"{variable}={os.environ[variable]} forbids to download {shown(url)}. Unset it.")


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  # it is looked at only when it is asked for
    except ValueError as error:
        raise ConfigError(f"{url!r} is not an address: {error}.") from None
    return parts


def shown(url: str) -> str:
    """Return an address without what may be secret in it: password and query."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


@contextlib.contextmanager
def _part(path: Path) -> Iterator[BufferedRandom]:
    """Open a file of this process alone beside ``path``, and remove it in the end if it is still there.

    A lock tells whether its process lives: what a killed one left is removed here.
    """
    for left in path.parent.glob(f".{_escape(path.name)}.*.part"):
        with contextlib.suppress(OSError), left.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()
    with _locked(path) as stream:
        try:
            yield stream
        finally:
            Path(stream.name).unlink(missing_ok=True)


def _locked(path: Path) -> BufferedRandom:
    """Open a new file beside ``path`` and lock it."""
    while True:
        part = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
        stream = part.open("x+b")
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(stream, fcntl.LOCK_EX)
        if part.exists():  # else another process took it for a dead one's before it was locked
            return stream
        stream.close()


def _escape(name: str) -> str:
    return re.sub(r"([\[?*])", r"[\1]", name)


class _Broken(Exception):
    """The connection ended, or could not be made; it is worth another attempt."""


class _File:
    """A file of this machine as a source."""

    def __init__(self, url: str):
        parts = _split(url)
        if parts.netloc not in ("", "localhost"):
            raise ConfigError(f"{url!r} names another machine; a file address has three slashes: file:///folder/name.")
        self.shown = url
        self._path = Path(urllib.request.url2pathname(parts.path))

    @contextlib.contextmanager
    def open(self, offset: int) -> Iterator[tuple[IO[Any], int, int | None]]:
        try:
            stream = self._path.open("rb")
        except OSError as error:
            raise DataError(f"{self.shown} cannot be read: {error.strerror}.") from None
        with stream:
            stream.seek(offset)
            yield stream, offset, os.fstat(stream.fileno()).st_size


class _Web:
    """A file on a server as a source."""

    def __init__(self, url: str, allow_http: bool):
        self.shown = shown(url)
        self._url, self._allow_http = url, allow_http
        self._version = ""  # what the server calls the state of the file that was begun
        self._opener = urllib.request.build_opener(_NoRedirects)

    @contextlib.contextmanager
    def open(self, offset: int) -> Iterator[tuple[IO[Any], int, int | None]]:
        """Yield a stream, the byte of the file that it begins at, and the length of the file."""
        headers = {"Accept-Encoding": "identity", "User-Agent": "lmf"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if self._version:
                headers["If-Range"] = self._version
        with self._follow(headers) as response:
            yield response, *self._extent(response, offset)

    def _follow(self, headers: dict[str, str]) -> Any:
        url = self._url
        for _ in range(_REDIRECTS + 1):
            request = urllib.request.Request(url, headers={**headers, **_authorization(url)})
            try:
                return self._opener.open(request, timeout=_TIMEOUT)
            except urllib.error.HTTPError as error:
                with error:
                    if error.code == 416 and headers.pop("Range", None):  # the file became shorter
                        continue
                    if error.code not in (301, 302, 303, 307, 308):
                        self._refused(error)
                    url = self._redirected(url, error.headers.get("Location"))
            except (OSError, http.client.HTTPException) as error:
                reason = getattr(error, "reason", error)
                if isinstance(reason, ssl.SSLCertVerificationError):
                    why = reason.verify_message
                    raise DataError(f"{self.shown}: the server is not who it says it is ({why}).") from None
                raise _Broken(_cause(reason)) from None
        raise DataError(f"{self.shown} is redirected more than {_REDIRECTS} times.")

    def _redirected(self, url: str, location: str | None) -> str:
        if not location:
            raise DataError(f"{self.shown} is redirected to nowhere.")
        target = urljoin(url, location)
        schemes = _split(url).scheme, _split(target).scheme
        if schemes[1] not in ("http", "https"):
            raise DataError(f"{self.shown} is redirected to a {schemes[1]} address, which is not followed.")
        if schemes == ("https", "http") and not self._allow_http:
            raise DataError(f"{self.shown} is redirected from https to plain http ({shown(target)}); not followed.")
        _check_scheme(target, self._allow_http)
        return target

    def _refused(self, error: urllib.error.HTTPError) -> None:
        code = f"{error.code} {error.reason}".strip()
        if error.code in _PASSING:
            raise _Broken(f"the server says {code}")
        advice = "The file is not there any more, or never was."
        if error.code in (401, 403):
            advice = "It may want you to accept its conditions on its page, and your token in HF_TOKEN."
        raise DataError(f"{self.shown} cannot be had: the server says {code}. {advice}")

    def _extent(self, response: Any, offset: int) -> tuple[int, int | None]:
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise DataError(f"{self.shown} is sent in another encoding than was asked for.")
        if response.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
            raise DataError(_page(self.shown))
        version = response.headers.get("ETag", "")
        self._version = version if not version.startswith("W/") else response.headers.get("Last-Modified", "")
        if response.status == 206:
            found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
            if not found or int(found[1]) != offset:
                raise DataError(f"{self.shown}: the server sends another part of the file than was asked for.")
            return offset, int(found[2])
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdecimal() else None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any) -> None:
        return None  # then the redirect comes as an HTTPError, and is judged here


def _authorization(url: str) -> dict[str, str]:
    """Return the header with the hub's token, for the hub alone and only over https."""
    token = os.environ.get("HF_TOKEN", "").strip()
    parts, hub = _split(url), _split(_address(HUB))
    if not token or parts.scheme != "https" or (parts.hostname, parts.port) != (hub.hostname, hub.port):
        return {}
    if not re.fullmatch(r"[!-~]+", token):
        raise ConfigError("HF_TOKEN holds characters that no token has.")
    return {"Authorization": f"Bearer {token}"}


def _receive(source: _File | _Web, part: BufferedRandom, expected: int | None, progress: Progress) -> None:
    """Write the whole file, in as many attempts as it takes while there is progress."""
    attempt = 0
    while True:
        before = part.tell()
        try:
            with source.open(before) as (stream, start, total):
                _check_length(source.shown, total, expected)
                _check_room(source.shown, part, (total or expected or 0) - start)
                part.seek(start)
                part.truncate()
                _copy(source, stream, part, total, expected, progress)
            return
        except _Broken as error:
            attempt = attempt + 1 if part.tell() - before < _CHUNK else 1
            if attempt > len(_WAITS):
                got = f" after {part.tell():,} bytes" if part.tell() else ""
                raise DataError(f"{source.shown} cannot be had{got}: {error}. Try again later.") from None
            time.sleep(_WAITS[attempt - 1])


def _copy(
    source: _File | _Web,
    stream: IO[Any],
    part: BufferedRandom,
    total: int | None,
    expected: int | None,
    progress: Progress,
) -> None:
    progress(part.tell(), total)
    while chunk := _read(stream):
        part.write(chunk)
        progress(part.tell(), total)
        if expected is not None and part.tell() > expected:
            raise DataError(f"{source.shown} is longer than the {expected:,} bytes that are expected.")
    if total is not None and part.tell() < total:
        raise _Broken("the connection is cut again and again")


def _read(stream: IO[Any]) -> Any:
    try:
        return stream.read(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(_cause(error)) from None


def _cause(error: Any) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _check_length(url: str, total: int | None, expected: int | None) -> None:
    if total is not None and expected is not None and total != expected:
        raise DataError(
            f"{url} has {total:,} bytes, but {expected:,} are expected: it is not the file that is in the catalogue."
        )


def _check_room(url: str, part: BufferedRandom, needed: int) -> None:
    free = shutil.disk_usage(Path(part.name).parent).free
    if needed > free:
        raise DataError(f"{url} needs {needed:,} bytes, but the disk of {Path(part.name).parent} has {free:,} left.")


def _check(url: str, part: BufferedRandom, sha256: str | None, expected: int | None, suffix: str) -> None:
    part.seek(0)
    head = part.read(512).lstrip().lower()
    if suffix not in (".html", ".htm") and head.startswith((b"<!doctype html", b"<html")):
        raise DataError(_page(url))
    size = part.seek(0, os.SEEK_END)
    if expected is not None and size != expected:
        raise DataError(f"{url} gave {size:,} bytes, but {expected:,} are expected.")
    if sha256 is None:
        return
    part.seek(0)
    found = hashlib.file_digest(part, "sha256").hexdigest()
    if found != sha256.lower():
        raise DataError(
            f"{url} is not the file that is expected: its SHA-256 is {found}, not {sha256.lower()}. "
            "It has changed or was tampered with."
        )


def _page(url: str) -> str:
    return f"{url} gives a web page where data are expected; perhaps it wants you to log in first."
