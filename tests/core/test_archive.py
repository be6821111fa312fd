"""An archive is unpacked whole into a folder of its own, or refused and nothing is left."""

import gzip
import io
import random
import re
import stat
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import zstandard
from lmf import DataError
from lmf.data.archive import unpack

FILES = {"set/train.jsonl": b'{"text": "a"}\n' * 500, "set/more/test.jsonl": b"{}\n", "readme.txt": b""}
KINDS = ["tar", "tar.gz", "tar.bz2", "tar.xz", "tar.zst", "tgz", "zip"]


def entry(name: str, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def tar(path: Path, *entries: tuple[tarfile.TarInfo, bytes]) -> Path:
    """Write a tar, packed as its name says."""
    mode = {".gz": "w:gz", ".tgz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}.get(path.suffix, "w")
    with tarfile.open(path, mode) as whole:  # type: ignore[call-overload]
        for info, data in entries:
            info.size = len(data)
            whole.addfile(info, io.BytesIO(data))
    if path.suffix == ".zst":
        path.write_bytes(zstandard.compress(path.read_bytes()))
    return path


def zipped(path: Path, *entries: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as whole:
        for name, data in entries:
            whole.writestr(name, data)
    return path


def good(folder: Path, kind: str) -> Path:
    path = folder / f"good.{kind}"
    if kind == "zip":
        return zipped(path, *FILES.items())
    top = (entry("./", type=tarfile.DIRTYPE), b"")
    return tar(path, top, *((entry(f"./{name}"), data) for name, data in FILES.items()))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_archive_gives_its_files(tmp_path, kind):
    archive = good(tmp_path, kind)
    out = tmp_path / "new/out"
    assert unpack(archive, out) == sorted(out / name for name in FILES)
    assert contents(out) == FILES


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_only_the_members_that_are_asked_for_are_written(tmp_path, kind):
    out = tmp_path / "out"
    assert unpack(good(tmp_path, kind), out, ["*/train.jsonl"]) == [out / "set/train.jsonl"]
    assert list(contents(out)) == ["set/train.jsonl"]


def test_a_gzip_file_gives_one_file(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"{}\n"))
    assert unpack(tmp_path / "a.jsonl.gz", tmp_path / "out") == [tmp_path / "out/a.jsonl"]
    assert contents(tmp_path / "out") == {"a.jsonl": b"{}\n"}


def test_files_get_no_rights_from_the_archive(tmp_path):
    archive = tar(tmp_path / "a.tar", (entry("a", mode=0o6777), b"x"))
    (file,) = unpack(archive, tmp_path / "out")
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755  # the folder that it was unpacked in was private
    assert file.stat().st_mode & (stat.S_ISUID | stat.S_ISGID | stat.S_IXUSR | stat.S_IWOTH) == 0


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").touch()
    with pytest.raises(DataError, match=r"out cannot take the files: .*\. Move it away\."):
        unpack(good(tmp_path, "tar"), out)
    assert contents(out) == {"mine": b""}


def test_members_that_are_not_there_are_an_error(tmp_path):
    with pytest.raises(DataError, match=r"good\.tar holds no file that is called \*\.csv or \*\.tsv\."):
        unpack(good(tmp_path, "tar"), tmp_path / "out", ["*.csv", "*.tsv"])
    assert not (tmp_path / "out").exists()


def test_an_unknown_kind_is_refused_by_its_name(tmp_path):
    (tmp_path / "a.rar").touch()
    with pytest.raises(DataError, match=r"a\.rar is not an archive that lmf can unpack; those end with \.tar, "):
        unpack(tmp_path / "a.rar", tmp_path / "out")


def with_entry(name: str, **fields: Any) -> Any:
    """Makes a tar with an honest file and one bad entry."""
    return lambda folder: tar(folder / "bad.tar.gz", (entry("ok.txt"), b"ok"), (entry(name, **fields), b""))


def cut(kind: str, keep: float) -> Any:
    def make(folder: Path) -> Path:
        data = good(folder, kind).read_bytes()
        (folder / f"bad.{kind}").write_bytes(data[: int(len(data) * keep)])
        return folder / f"bad.{kind}"

    return make


def cut_between_entries(folder: Path) -> Path:
    """A tar of two whole entries without the blocks that end it."""
    data = tar(folder / "whole.tar", (entry("a"), b"x" * 512), (entry("b"), b"")).read_bytes()
    (folder / "bad.tar").write_bytes(data[: 3 * 512])
    return folder / "bad.tar"


def bad_checksum(folder: Path) -> Path:
    """A tar whose second header is damaged, where tarfile simply stops."""
    data = bytearray(tar(folder / "whole.tar", (entry("a"), b""), (entry("b"), b"")).read_bytes())
    data[512] ^= 1
    (folder / "bad.tar").write_bytes(data)
    return folder / "bad.tar"


def zip_link(folder: Path) -> Path:
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return zipped(folder / "bad.zip", (info, b"/etc/passwd"))


def zip_with_nul(folder: Path) -> Path:
    data = zipped(folder / "whole.zip", ("aXb", b"x")).read_bytes()
    (folder / "bad.zip").write_bytes(data.replace(b"aXb", b"a\0b"))
    return folder / "bad.zip"


def zip_damaged(folder: Path) -> Path:
    data = bytearray(zipped(folder / "whole.zip", ("a", random.Random(0).randbytes(1000))).read_bytes())
    data[200] ^= 1
    (folder / "bad.zip").write_bytes(data)
    return folder / "bad.zip"


def zip_of(*entries: tuple[str, bytes]) -> Any:
    return lambda folder: zipped(folder / "bad.zip", *entries)


def zip_encrypted(folder: Path) -> Path:
    data = bytearray(zipped(folder / "whole.zip", ("a", b"x")).read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (folder / "bad.zip").write_bytes(data)
    return folder / "bad.zip"


def gzip_bad_checksum(folder: Path) -> Path:
    """A whole tar whose last bytes, the checksum that gzip gives to it, are wrong."""
    data = bytearray(good(folder, "tar.gz").read_bytes())
    data[-8] ^= 1
    (folder / "bad.tar.gz").write_bytes(data)
    return folder / "bad.tar.gz"


def long_header(folder: Path) -> Path:
    """A tar whose header says that a gigabyte of further header follows."""
    (folder / "bad.tar").write_bytes(entry("a", type=tarfile.XHDTYPE, size=1 << 30).tobuf(tarfile.USTAR_FORMAT))
    return folder / "bad.tar"


def tar_of(*entries: tuple[str, bytes], kind: str = "tar.gz") -> Any:
    return lambda folder: tar(folder / f"bad.{kind}", *((entry(name), data) for name, data in entries))


BOMB = bytes(200_000_000)
HOSTILE = {
    "parent": (with_entry("../evil"), "the entry '../evil' leads out of the folder"),
    "parent inside": (with_entry("a/../../evil"), "the entry 'a/../../evil' leads out of the folder"),
    "absolute": (with_entry("/etc/evil"), "the entry '/etc/evil' has an absolute path"),
    "drive": (with_entry("C:evil"), "the entry 'C:evil' has an absolute path"),
    "backslash": (with_entry("..\\evil"), r"the entry '..\\evil' has a backslash in its name"),
    "newline": (with_entry("a\nb"), r"the entry 'a\nb' has a control character in its name"),
    "nul in zip": (zip_with_nul, r"the entry 'a\x00b' has a control character in its name"),
    "symbolic link": (with_entry("a", type=tarfile.SYMTYPE, linkname="/etc"), "the entry 'a' is a symbolic link"),
    "hard link": (with_entry("a", type=tarfile.LNKTYPE, linkname="ok.txt"), "the entry 'a' is a hard link"),
    "link in zip": (zip_link, "the entry 'link' is neither a file nor a folder"),
    "pipe": (with_entry("a", type=tarfile.FIFOTYPE), "the entry 'a' is a pipe"),
    "device": (with_entry("a", type=tarfile.CHRTYPE), "the entry 'a' is a device"),
    "name twice": (tar_of(("a", b"1"), ("./A", b"2")), "it has the name 'A' twice"),
    "name twice in zip": (
        lambda folder: zipped(folder / "bad.zip", ("a", b"1"), ("A", b"2")),
        "has the name 'A' twice",
    ),
    "under a file": (tar_of(("a", b"1"), ("a/b", b"2")), "'a/b' lies under a name that is a file"),
    "bomb": (tar_of(("a", BOMB)), "it unpacks to more than 200 times its size"),
    "bomb in zip": (
        lambda folder: zipped(folder / "bad.zip", ("a", BOMB)),
        "it unpacks to more than 200 times its size",
    ),
    "many entries": (tar_of(*((str(number), b"") for number in range(20_000))), "it has more than 10,000 entries"),
    "cut tar": (cut("tar", 0.3), "bad.tar is damaged: unexpected end of data"),
    "cut tar between entries": (cut_between_entries, "it is cut or damaged: its end is missing"),
    "cut gzip": (cut("tar.gz", 0.9), "bad.tar.gz is cut: it ends too early"),
    "cut zstandard": (cut("tar.zst", 0.9), "bad.tar.zst"),
    "cut zip": (cut("zip", 0.9), "bad.zip is damaged: File is not a zip file"),
    "encrypted": (zip_encrypted, "the entry 'a' is encrypted"),
    "long header": (long_header, "one of its headers claims 1,073,741,824 bytes"),
    "bad checksum in gzip": (gzip_bad_checksum, "bad.tar.gz is damaged: CRC check failed"),
    "bad checksum": (bad_checksum, "it is cut or damaged: its end is missing"),
    "bad checksum in zip": (zip_damaged, "bad.zip is damaged"),
}


LARGE = ("bomb", "bomb in zip", "many entries")  # a second or more each


@pytest.mark.parametrize(
    ("kind", "members"), [(kind, members) for kind in HOSTILE for members in [(), ("ok.txt",)][: 2 - (kind in LARGE)]]
)
def test_a_bad_archive_is_refused_and_nothing_is_left(tmp_path, kind, members):
    make, message = HOSTILE[kind]
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    archive = make(source)
    if "bomb" in kind:
        assert archive.stat().st_size < 300_000
    with pytest.raises(DataError, match=re.escape(message)):
        unpack(archive, target / "out", members)
    assert list(target.iterdir()) == []
    assert sorted(tmp_path.iterdir()) == [source, target]


def test_the_limits_can_be_chosen(tmp_path):
    archive = good(tmp_path, "tar")
    with pytest.raises(DataError, match="it has more than 2 entries"):
        unpack(archive, tmp_path / "out", entries=2)
    with pytest.raises(DataError, match="it unpacks to more than 5,000 bytes"):
        unpack(archive, tmp_path / "out", size=5000)
    bomb = tar(tmp_path / "a.tar.gz", (entry("a"), bytes(110_000_000)))
    assert unpack(bomb, tmp_path / "out", ratio=2000)


@pytest.mark.parametrize("kind", ["tar", "zip", "tar.gz"])
def test_whatever_bytes_are_changed_there_is_an_answer_or_one_kind_of_error(tmp_path, kind):
    data = good(tmp_path, kind).read_bytes()
    dice = random.Random(0)
    refused = 0
    for number in range(150):
        changed = bytearray(data)
        for _ in range(dice.choice([1, 3, 20])):
            changed[dice.randrange(min(len(data), 3000))] = dice.randrange(256)
        (tmp_path / f"bad.{kind}").write_bytes(changed)
        try:
            unpack(tmp_path / f"bad.{kind}", tmp_path / f"out{number}")
        except DataError:
            refused += 1
            assert not (tmp_path / f"out{number}").exists()
    assert refused > 50
