"""The record of a run and the files it consists of."""

import json
import os
import shlex
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from lmf import DataError, LmfError
from lmf.runs import find_runs, read_log, read_run, resume_command, write_file, write_run
from tinyrun import PLUGINS, log, run, sha256, talks


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return talks(tmp_path_factory.mktemp("data") / "talks.jsonl", 12)


@pytest.fixture(scope="module")
def finished(tiny, data, tmp_path_factory) -> Path:
    """A run with most of what can be recorded."""
    settings = {"steps": 3, "batch_size": 4, "eval_split": 0.2, "eval_every": 1, "sample": "one"}
    return run(tiny, data, tmp_path_factory.mktemp("runs") / "out", "freeze", options={"last_layers": 1}, **settings)


def test_the_record_tells_what_was_run_with_what_and_how_it_went(finished, tiny, data):
    record = read_run(finished)
    evaluations = log(finished, "eval_loss")
    assert (record["status"], record["ended"], record["steps"]) == ("finished", "finished", 3)
    best = min(evaluations, key=lambda line: line["eval_loss"])
    assert record["best"] == {"step": best["step"], "loss": best["eval_loss"]}
    assert [line["step"] for line in evaluations] == [0, 1, 2, 3]
    assert record["settings"]["objective"] == "lmf-sft:train"
    assert record["settings"]["method"] == "lmf-full:freeze"
    assert record["settings"]["last_layers"] == 1
    assert record["settings"]["model"] == str(tiny)
    assert record["settings"]["data"] == [str(data)]
    assert (record["family"], record["template"]) == ("lmf-templates:llama", "lmf-templates:chatml")
    assert record["optimizer"] == "lmf-core:adamw"
    assert record["data"] == [
        {"path": str(data), "format": "messages", "records": 12, "sha256": sha256(data), "weight": ""}
    ]
    assert record["held_out_data"] == []
    assert record["plugins"] == {p.package: p.version for p in PLUGINS.installed}
    assert record["plugins"]["lmf-full"] == version("lmf-full")
    assert record["versions"] == {
        name: version(name) for name in ("torch", "transformers", "accelerate", "safetensors")
    }
    assert (record["device"], record["processes"]) == ("cpu", 1)
    assert isinstance(record["sample_before"], str)
    assert isinstance(record["sample_after"], str)


def test_the_settings_hold_what_was_set_and_nothing_that_would_stop_a_second_run(finished):
    settings = tomllib.loads((finished / "run.toml").read_text())
    assert settings["method"] == "lmf-full:freeze"
    assert settings["learning_rate"] == 1e-3
    assert not {"resume", "overwrite", "eval_data", "attention"} & set(settings)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "new/file"
    write_file(file, "first")
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    with pytest.raises(OSError, match="Input/output error"):
        write_file(file, "second")
    assert [path.name for path in file.parent.iterdir()] == ["file"]
    assert file.read_text() == "first"


def test_a_folder_without_a_run_is_told(tmp_path):
    with pytest.raises(LmfError, match=rf"^{tmp_path} holds no run of lmf: lmf\.json is missing\.$"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "5", '{"status": "finished"}', '{"settings": 5}', '{"settings": "ab"}']
)
def test_a_damaged_record_is_told(text, tmp_path):
    (tmp_path / "lmf.json").write_text(text)
    with pytest.raises(LmfError, match=rf"^{tmp_path}/lmf\.json is damaged: "):
        read_run(tmp_path)


def test_the_last_line_of_a_log_may_be_cut_and_no_other(tmp_path):
    assert read_log(tmp_path) == []
    lines = [json.dumps({"step": step, "loss": 1 / step}) for step in (1, 2, 3)]
    (tmp_path / "log.jsonl").write_text("\n".join(lines)[:-4])
    assert read_log(tmp_path) == [json.loads(line) for line in lines[:2]]
    (tmp_path / "log.jsonl").write_text("\n".join([lines[0], lines[1][:-4], lines[2], ""]))
    with pytest.raises(DataError, match=rf"^{tmp_path}/log\.jsonl:2: not a line of JSON\.$"):
        read_log(tmp_path)


def test_runs_are_found_at_any_depth_but_not_inside_one_another(tmp_path):
    for place in ("b/c", "a", "a/checkpoints", ".hidden", "d/e/f"):
        write_run(tmp_path / place, {})
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "file").touch()
    assert find_runs(tmp_path) == [tmp_path / place for place in ("a", "b/c", "d/e/f")]
    assert find_runs(tmp_path / "a") == [tmp_path / "a"]
    assert find_runs(tmp_path / "file") == find_runs(tmp_path / "nothing") == []


def test_the_command_that_continues_a_run_is_one_for_a_shell():
    command = resume_command("train", Path("my runs/it's"))
    assert shlex.split(command) == ["lmf", "train", "--config", "my runs/it's/run.toml", "--resume"]
