"""``lmf data list``, ``info`` and ``download``."""

import json
from pathlib import Path

import pytest
from lmf import DataError, DataSet, LmfError, Plugins, Remote, UnknownName
from lmf_cli.catalogue import catalogue
from lmf_cli.groups import application
from typer.main import get_command

RECORD = b'{"frage": "Hi", "output": "Hello!"}\n'


class Done:
    """Runs the three commands over a few data sets."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]):
        self.source = folder / "source.jsonl"
        self.source.write_bytes(RECORD)
        self.plugins = Plugins(only=[])
        common = {"summary": "Small.", "source": "A shelf.", "licence": "MIT", "homepage": "https://example.com"}
        remote = Remote(url=self.source.as_uri(), path="train.jsonl", bytes=len(RECORD))
        for dataset in (
            DataSet(name="small", remote=(remote,), size=36, format="text2text", columns={"frage": "input"}, **common),
            DataSet(name="gone", unavailable="it is pictures.", **common),
            DataSet(name="lost", remote=(Remote(url="file:///nowhere/a", path="a"),), **common),
            DataSet(name="bundled", files=lambda: [self.source], **common),
        ):
            self.plugins.datasets.add(dataset, "acme")
        self._capsys = capsys

    def __call__(self, *args: str) -> str:
        """Run a command and return what it prints."""
        app = application()
        app.callback()(lambda: None)
        catalogue(app, self.plugins)
        get_command(app)(args, standalone_mode=False)
        return self._capsys.readouterr().out


@pytest.fixture
def data(tmp_path, capsys, monkeypatch) -> Done:
    monkeypatch.setenv("LMF_CACHE", str(tmp_path / "cache"))
    return Done(tmp_path, capsys)


def test_the_list_has_a_line_for_each_data_set(data):
    lines = {line.split()[0]: " ".join(line.split()) for line in data("list").splitlines()[1:]}
    assert lines == {
        "bundled": "bundled - ? here MIT Small.",
        "gone": "gone - ? cannot be downloaded MIT Small.",
        "lost": "lost - ? to be downloaded MIT Small.",
        "small": "small text2text <0.01 to be downloaded MIT Small.",
    }


def test_the_list_and_a_data_set_come_as_json(data):
    listed = json.loads(data("list", "--json"))
    assert [each["name"] for each in listed] == ["bundled", "gone", "lost", "small"]
    shown = json.loads(data("info", "small", "--json"))
    assert shown == listed[-1]
    assert (shown["licence"], shown["size"], shown["columns"]) == ("MIT", 36, {"frage": "input"})
    assert shown["files"] == [{"url": data.source.as_uri(), "sha256": None, "bytes": 36}]
    assert [each["downloaded"] for each in listed] == [True, False, False, False]


def test_a_name_that_two_packages_define_is_listed_with_both(data):
    data.plugins.datasets.add(DataSet(name="small", summary="Other.", source="B.", unavailable="no."), "rival")
    assert [each["name"] for each in json.loads(data("list", "--json"))][-2:] == ["acme:small", "rival:small"]


def test_info_says_where_the_data_come_from_and_how_they_are_read(data):
    shown = [" ".join(line.split()) for line in data("info", "small").splitlines()]
    assert "licence MIT" in shown
    assert "columns input is called frage" in shown
    assert f"files {data.source.as_uri()} (without a checksum)" in shown
    assert "state cannot be downloaded: it is pictures." in " ".join(data("info", "gone").split())


def test_download_fetches_what_is_not_here_and_says_where_it_is(data, tmp_path):
    folder = tmp_path / "cache/data/small"
    first = data("download", "small").splitlines()
    assert first == [
        "small: 1 file, about <0.01 MB, from this machine, licence MIT",
        f"small is in {folder} (1 file)",
    ]
    assert data("download", "small") == f"small is in {folder} (1 file)\n"
    assert data("download", "bundled") == "bundled needs no download: it came with its package\n"
    assert json.loads(data("info", "small", "--json"))["downloaded"]


def test_one_data_set_that_fails_keeps_no_other_from_coming(data, tmp_path):
    with pytest.raises(DataError) as caught:
        data("download", "gone", "lost", "small")
    assert str(caught.value).splitlines() == [
        "gone cannot be downloaded: it is pictures.",
        "file:///nowhere/a cannot be read: No such file or directory.",
    ]
    assert (tmp_path / "cache/data/small/train.jsonl").read_bytes() == RECORD


def test_an_unknown_name_is_refused_before_anything_is_fetched(data, tmp_path):
    with pytest.raises(UnknownName, match=r"No data set is called 'smal'\. Did you mean 'small'\?"):
        data("download", "small", "smal")
    assert not (tmp_path / "cache").exists()


def test_plain_http_needs_a_flag(data, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("lmf.data.fetch._WAITS", ())
    plain = Remote(url="http://a.invalid/x", path="x")
    data.plugins.datasets.add(DataSet(name="plain", summary="Plain.", source="B.", remote=(plain,)), "acme")
    with pytest.raises(LmfError, match="is plain http, which anyone on the way can change; it needs --allow-http"):
        data("download", "plain")
    with pytest.raises(DataError, match=r"a\.invalid/x cannot be had"):
        data("download", "plain", "--allow-http")
