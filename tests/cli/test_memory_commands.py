"""``lmf plan`` forecasts memory, and ``lmf profile memory`` measures it."""

import json
import shutil
from pathlib import Path

import pytest
from lmf.memory import machine
from lmf_cli.memory import show_forecast
from terminal import Done, hollow_model, lmf, tree
from tinyrun import talks

PARTS = ["weights", "gradients", "state", "activations", "logits", "temporaries", "process"]


@pytest.fixture
def line(tiny, tmp_path, monkeypatch) -> list[str]:
    """The flags of a run of the tiny model."""
    monkeypatch.chdir(tmp_path)
    talks(tmp_path / "talks.jsonl", 8)
    return ["--model", str(tiny), "--data", "talks.jsonl", "--template", "chatml", "--dtype", "float32"]


def good(done: Done) -> str:
    assert (done.code, done.err) == (0, "")
    return done.out


def test_a_plan_ends_with_what_memory_it_needs_and_whether_that_is_there(line):
    lines = good(lmf("plan", "train", "full", *line)).splitlines()
    at = next(i for i, each in enumerate(lines) if each.startswith("memory forecast"))
    assert lines[at] == (
        "memory forecast (cpu), for micro-batches of 4,096 tokens, all of them learned, and no new tokens:"
    )
    rows = [each.split() for each in lines[at + 2 : at + 10]]
    names = ["weights", "gradients", "optimizer", "activations", "logits", "temporaries", "process", "peak"]
    assert [row[0] for row in rows] == names
    assert lines[at + 10].endswith("the run fits")
    assert lines[-1] == "Nothing was started. Leave out the word plan to start."


def test_a_plan_as_json_has_settings_data_and_memory_and_its_parts_add_up(line, tiny):
    found = json.loads(good(lmf("plan", "train", "full", *line, "--seed", "3", "--json")))
    assert found["settings"]["seed"] == {"value": 3, "from": "flag"}
    assert found["data"][0]["records"] == 8
    assert found["model"] == str(tiny)
    memory = found["memory"]
    assert list(memory["peak"]) == PARTS
    assert sum(memory["peak"].values()) == memory["total"] == memory["tensors"] + memory["peak"]["process"]
    assert memory["fits"] is True and memory["changes"] == []


def test_a_plan_that_does_not_fit_names_what_would(line, monkeypatch):
    line = [*line, "--max-tokens", "64", "--micro-batch-tokens", "512"]
    needed = json.loads(good(lmf("plan", "train", "full", *line, "--json")))["memory"]
    process = needed["peak"]["process"]
    monkeypatch.setattr(machine, "process", lambda device: process)
    monkeypatch.setattr(machine, "capacity", lambda device: needed["total"] - 1)
    text = good(lmf("plan", "train", "full", *line))
    assert "the run DOES NOT FIT" in text
    table = text[text.index("DOES NOT FIT") :].splitlines()[2:-1]
    fits = [row.rstrip().endswith("fits") for row in table]
    changes = [row.split("  ")[0] for row, fit in zip(table, fits, strict=True) if fit]
    assert {"--gradient-checkpointing", "--micro-batch-tokens 64", "lisa"} <= set(changes)
    assert fits == sorted(fits, reverse=True)  # first what is enough; for so small a model lora is not


def test_where_nothing_is_enough_the_changes_are_shown_all_the_same(capsys):
    parts = dict.fromkeys(PARTS, 2**20)
    change = {"flags": "--dtype bfloat16", "bytes": 3 * 2**30, "fits": False}
    shown = {"peak": parts, "most": parts, "capacity": 2**20, "fits": False, "changes": [change]}
    show_forecast({"device": "cpu", "tokens": 64, **shown})
    *_, told, _, row = capsys.readouterr().out.splitlines()
    assert told == "None of these changes is enough; what they would need:"
    assert row.split() == ["--dtype", "bfloat16", "3.00", "GiB"]


def test_a_model_that_cannot_be_built_from_its_configuration_is_no_error_of_a_plan(line, tmp_path):
    hollow_model(tmp_path / "odd", model_type="nosuch")
    line[1] = "./odd"
    text = good(lmf("plan", "train", "full", *line))
    (told,) = [each for each in text.splitlines() if each.startswith("memory: no forecast: ")]
    assert "./odd" in told and "nosuch" in told
    assert text.splitlines()[-1] == "Nothing was started. Leave out the word plan to start."


def test_a_plan_reads_no_weights(line, tiny, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny, copy)
    whole = (copy / "model.safetensors").read_bytes()
    hollow_model(tmp_path / "hollow")
    shutil.copy(tmp_path / "hollow/model.safetensors", copy)  # one number instead of all of them
    assert len(whole) > (copy / "model.safetensors").stat().st_size
    expected = json.loads(good(lmf("plan", "train", "lora", *line, "--json")))["memory"]["tensors"]
    line[1] = str(copy)
    assert json.loads(good(lmf("plan", "train", "lora", *line, "--json")))["memory"]["tensors"] == expected


def test_the_memory_of_a_few_steps_is_measured_beside_the_forecast(line, tmp_path):
    before = tree(tmp_path)
    found = json.loads(good(lmf("profile", "memory", "train", "lora", *line, "--batch-size", "4", "--json")))
    assert found["forecast_to_measured"] == pytest.approx(1, abs=0.1)
    assert list(found["measured"]["peak"]) == list(found["forecast"]["peak"]) == PARTS
    assert found["measured"]["most"]["gradients"] == found["forecast"]["most"]["gradients"] > 0
    assert found["steps"] == 2  # there are no more
    assert found["used"] > found["measured"]["tensors"]
    assert tree(tmp_path) == before
    assert not Path("out").exists()


def test_measured_memory_is_printed_for_people_too(line):
    text = lmf("profile", "memory", "train", "full", *line).out
    at = text.index("memory at the peak of 1 step (cpu), largest micro-batch ")
    assert text[at:].splitlines()[1].split() == ["measured", "forecast"]
    assert "\nthe most main memory this process had: " in text
    assert "\nforecast / measured: " in text
