"""What is made or fetched once and kept: the cache folder, and the data sets in it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ..errors import DataError
from ..specs import DataSet, Remote

if TYPE_CHECKING:
    from .fetch import Progress


def cache_folder() -> Path:
    """Return the folder for what is made once and kept: ``LMF_CACHE``, or ``lmf`` in the user's cache."""
    if own := os.environ.get("LMF_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lmf"


def data_folder(dataset: DataSet) -> Path:
    """Return the folder that a data set is downloaded to."""
    return cache_folder() / "data" / dataset.name


def missing(dataset: DataSet) -> list[Remote]:
    """Return what of a data set is still to be downloaded."""
    return [remote for remote in dataset.remote if not _whole(dataset, remote)]


def data_files(dataset: DataSet) -> list[Path]:
    """Return the files of a data set; nothing is downloaded.

    Raises:
        DataError: They are not here; the text says how to get them.
    """
    if dataset.files:
        return [Path(file) for file in dataset.files()]
    _check_available(dataset)
    if missing(dataset):
        raise DataError(f"{dataset.name} is not downloaded; lmf data download {dataset.name} fetches {about(dataset)}.")
    return [file for remote in dataset.remote for file in _files(_place(dataset, remote))]


def about(dataset: DataSet) -> str:
    """Return what a download would fetch: how many files, how much, from where, under which licence."""
    count = len(dataset.remote)
    hosts = sorted({urlsplit(remote.url).hostname or "this machine" for remote in dataset.remote})
    size = "of unknown size" if dataset.size is None else f"about {megabytes(dataset.size)} MB"
    return f"{count} file{'s' * (count != 1)}, {size}, from {', '.join(hosts)}, licence {dataset.licence}"


def megabytes(size: int) -> str:
    """Return a number of bytes in megabytes, with two digits where it is small."""
    value = size / 1e6
    if value < 0.01:
        return "<0.01"
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def fetch(
    dataset: DataSet, progress: Callable[[Remote], Progress] | None = None, *, allow_http: bool = False
) -> list[Path]:
    """Download what is missing of a data set, and return its files.

    Args:
        dataset: The data set.
        progress: Makes what is told how far a file is.
        allow_http: Take http from anywhere, and follow redirects to it.

    Raises:
        ConfigError: The address or the environment forbids the download.
        DataError: It failed, or the data set cannot be downloaded; whole files stay.
    """
    from .archive import unpack
    from .fetch import download  # 40 ms of standard library that only a download needs

    _check_available(dataset)
    with _alone(data_folder(dataset)):
        for remote in missing(dataset):
            path, place = data_folder(dataset) / remote.path, _place(dataset, remote)
            tell = progress(remote) if progress else None
            download(remote.url, path, remote.sha256, remote.bytes, tell, allow_http=allow_http)
            if remote.members:
                try:
                    shutil.rmtree(place, ignore_errors=True)  # that of an older version
                    unpack(path, place, remote.members)
                finally:
                    path.unlink(missing_ok=True)
            _note(dataset, remote).write_text(_origin(remote), encoding="utf-8")
    return data_files(dataset)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time fill a folder; the others wait, and find it filled."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / ".lock").open("a")
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {error.strerror}. LMF_CACHE chooses another folder.") from None
    with stream:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _check_available(dataset: DataSet) -> None:
    if dataset.unavailable:
        raise DataError(f"{dataset.name} cannot be downloaded: {dataset.unavailable}")


def _whole(dataset: DataSet, remote: Remote) -> bool:
    """Whether a file is here, and is the one that the data set means today.

    A file has its name only when it is whole; its note tells where it came from, for the next
    version of a data set may come from elsewhere.
    """
    try:
        noted = _note(dataset, remote).read_text(encoding="utf-8")
    except OSError:
        return False
    return noted == _origin(remote) and _place(dataset, remote).exists()


def _origin(remote: Remote) -> str:
    return json.dumps({"url": remote.url, "sha256": remote.sha256, "members": remote.members})


def _note(dataset: DataSet, remote: Remote) -> Path:
    return data_folder(dataset) / f".{remote.path}.json"


def _place(dataset: DataSet, remote: Remote) -> Path:
    """Return the file, or of an archive the folder that its files come into."""
    name = remote.path
    if remote.members:
        from .archive import SUFFIXES

        name = next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), f"{name}.files")
    return data_folder(dataset) / name


def _files(place: Path) -> list[Path]:
    return sorted(file for file in place.rglob("*") if file.is_file()) if place.is_dir() else [place]
