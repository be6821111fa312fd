"""Data sets are downloaded into the cache when that is asked for, and never by reading them."""

import hashlib
import io
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lmf.data.fetch
import pytest
from lmf import DataError, DataSet, PluginError, Plugins, Remote
from lmf.data import reading as data
from lmf.data.cache import about, data_files, data_folder, fetch, megabytes, missing

RECORD = b'{"frage": "Hi", "output": "Hello!"}\n'


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LMF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/data/small"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.jsonl"
    path.write_bytes(RECORD)
    return path


def small(*remote: Remote, **more: object) -> DataSet:
    about = {
        "licence": "MIT",
        "size": 2_100_000,
        "format": "text2text",
        "columns": {"frage": "input", "output": "output"},
        **more,
    }
    return DataSet(name="small", summary="Small.", source="here", remote=remote, **about)  # type: ignore[arg-type]


def remote(path: Path, **more: object) -> Remote:
    return Remote(url=path.as_uri(), path="train.jsonl", **more)  # type: ignore[arg-type]


def archive(path: Path, **files: bytes) -> Path:
    with tarfile.open(path, "w:gz") as whole:
        for name, content in files.items():
            info = tarfile.TarInfo(f"set/{name}.jsonl")
            info.size = len(content)
            whole.addfile(info, io.BytesIO(content))
    return path


def read(dataset: DataSet) -> list[str]:
    """Read a data set by its name, as a run does."""
    plugins = Plugins(only=[])
    plugins.datasets.add(dataset, "here")
    records = data.read([dataset.name], "conversation", plugins).records
    return [message.content for record in records for message in record.data.messages]  # type: ignore[union-attr]


def test_what_is_not_downloaded_is_an_error_that_says_how_to_get_it(folder, monkeypatch):
    monkeypatch.setattr(lmf.data.fetch, "download", lambda *_: pytest.fail("a run downloads nothing"))
    dataset = small(
        Remote(url="https://huggingface.co/a", path="a.jsonl"), Remote(url="https://example.com/b", path="b.jsonl")
    )
    with pytest.raises(DataError) as caught:
        read(dataset)
    assert str(caught.value) == (
        "small is not downloaded; lmf data download small fetches 2 files, about 2.1 MB, "
        "from example.com, huggingface.co, licence MIT."
    )
    assert not folder.exists()


def test_a_data_set_that_is_downloaded_is_read_with_its_columns_renamed(folder, source):
    dataset = small(remote(source))
    assert fetch(dataset) == [folder / "train.jsonl"]
    assert missing(dataset) == []
    assert read(dataset) == ["Hi", "Hello!"]


def test_what_is_here_is_not_fetched_again_and_what_lacks_is(folder, source, monkeypatch):
    dataset = small(remote(source))
    fetch(dataset)
    source.unlink()
    fetch(dataset)
    (folder / "train.jsonl").unlink()
    assert missing(dataset) == list(dataset.remote)
    with pytest.raises(DataError, match=r"source\.jsonl cannot be read: No such file"):
        fetch(dataset)


def test_a_file_of_an_earlier_version_of_the_data_set_counts_for_nothing(folder, source, tmp_path):
    fetch(small(remote(source)))
    other = tmp_path / "other.jsonl"
    other.write_bytes(RECORD.replace(b"Hi", b"Ho"))
    newer = small(remote(other))
    with pytest.raises(DataError, match="small is not downloaded"):
        data_files(newer)
    fetch(newer)
    assert read(newer) == ["Ho", "Hello!"]
    checked = small(remote(other, sha256=hashlib.sha256(b"").hexdigest()))
    assert missing(checked)


def test_the_files_of_an_archive_come_into_a_folder_and_the_archive_goes(folder, tmp_path):
    packed = archive(tmp_path / "a.tar.gz", train=RECORD, test=RECORD, notes=b"?")
    dataset = small(Remote(url=packed.as_uri(), path="a.tar.gz", members=("*/train.jsonl", "*/test.jsonl")))
    files = [folder / "a/set/test.jsonl", folder / "a/set/train.jsonl"]
    assert fetch(dataset) == data_files(dataset) == files
    assert [each.name for each in sorted(folder.iterdir()) if not each.name.startswith(".")] == ["a"]
    assert read(dataset) == ["Hi", "Hello!"] * 2


def test_a_newer_archive_takes_the_place_of_the_older_one(folder, tmp_path):
    for name in ("old", "new"):
        packed = archive(tmp_path / f"{name}.tar.gz", **{name: RECORD})
        fetch(small(Remote(url=packed.as_uri(), path="a.tar.gz", members=("*",))))
        assert [each.name for each in (folder / "a/set").iterdir()] == [f"{name}.jsonl"]


def test_a_bad_archive_leaves_nothing(folder, tmp_path):
    packed = tmp_path / "a.tar.gz"
    packed.write_bytes(archive(packed, train=RECORD * 1000).read_bytes()[:-9])
    dataset = small(Remote(url=packed.as_uri(), path="a.tar.gz", members=("*",)))
    with pytest.raises(DataError, match=r"a\.tar\.gz is cut: it ends too early"):
        fetch(dataset)
    assert [each.name for each in folder.iterdir()] == [".lock"]
    assert missing(dataset)


def test_several_processes_that_want_one_data_set_fetch_it_once(folder, tmp_path, monkeypatch):
    packed = archive(tmp_path / "a.tar.gz", train=RECORD)
    dataset = small(Remote(url=packed.as_uri(), path="a.tar.gz", members=("*",)))
    fetched = []
    real = lmf.data.fetch.download
    start = threading.Barrier(4)
    monkeypatch.setattr(lmf.data.fetch, "download", lambda *args, **more: fetched.append(args) or real(*args, **more))

    def one(_: int) -> list[Path]:
        start.wait()
        return fetch(dataset)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(one, range(4))) == [[folder / "a/set/train.jsonl"]] * 4
    assert len(fetched) == 1


def test_progress_is_told_by_file(source):
    seen = []
    dataset = small(remote(source))
    fetch(dataset, lambda part: lambda done, total: seen.append((part.path, done, total)))
    assert seen[-1] == ("train.jsonl", len(RECORD), len(RECORD))


def test_data_that_cannot_be_had_say_why():
    dataset = small(unavailable="it is pictures.")
    for ask in (data_files, fetch):
        with pytest.raises(DataError, match=r"^small cannot be downloaded: it is pictures\.$"):
            ask(dataset)


def test_data_that_came_with_a_package_need_no_download(source):
    dataset = small(files=lambda: [source])
    assert fetch(dataset) == data_files(dataset) == [source]
    assert missing(dataset) == []


def test_a_cache_that_cannot_be_written_is_said(source, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LMF_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"file/data/small cannot be written: .*\. LMF_CACHE chooses another folder\."):
        fetch(small(remote(source)))


def test_a_size_is_said_in_megabytes():
    sizes = (36, 18_517, 2_584_787, 22_800_000, 568_000_000_000)
    assert [megabytes(size) for size in sizes] == ["<0.01", "0.019", "2.6", "23", "568,000"]
    assert about(small(Remote(url="file:///a", path="a"), size=None)) == (
        "1 file, of unknown size, from this machine, licence MIT"
    )
    assert data_folder(small(unavailable="no")).name == "small"


def test_a_data_set_has_files_or_an_address_or_a_reason():
    with pytest.raises(PluginError, match="'small' must have one of files, remote and unavailable"):
        small()
    with pytest.raises(PluginError, match="'small' must have one of files, remote and unavailable"):
        small(Remote(url="file:///a", path="a"), unavailable="no")


@pytest.mark.parametrize("path", ["../a", "a/b", "/a", ".a", "", "a b", "C:a"])
def test_a_remote_file_has_a_plain_name(path):
    with pytest.raises(PluginError, match=r"the path .* of file:///a must be a plain file name"):
        Remote(url="file:///a", path=path)


def test_a_checksum_is_sixty_four_digits():
    with pytest.raises(PluginError, match="the sha256 'abc' of file:///a must be 64 hexadecimal digits"):
        Remote(url="file:///a", path="a", sha256="abc")
