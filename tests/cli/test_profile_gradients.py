"""``lmf profile gradients``: what it prints, and that a run takes it."""

import json

import pytest
from terminal import lmf, lmf_without_torch
from tinyrun import talks


@pytest.fixture
def line(tiny, tmp_path, monkeypatch) -> list[str]:
    """The flags of a run of the tiny model."""
    monkeypatch.chdir(tmp_path)
    data = talks(tmp_path / "talks.jsonl", 8)
    return ["--model", str(tiny), "--data", str(data), "--template", "chatml", "--dtype", "float32", "--steps", "2"]


def test_it_prints_a_table_for_people_and_a_list_that_a_run_takes_as_weights(line, tmp_path):
    done = lmf("profile", "gradients", "train", "lisa", *line)
    assert done.code == 0, done.err
    norms = json.loads(done.out)
    assert len(norms) == 4 and all(norm > 0 for norm in norms)
    heading, *rows = [row.split() for row in done.err.splitlines()]
    assert heading == ["layer", "gradient", "norm", "share"]
    assert [row[:2] for row in rows] == [[str(number), f"{norm:.4g}"] for number, norm in enumerate(norms)]
    assert not (tmp_path / "out").exists()
    (tmp_path / "layers.json").write_text(done.out)
    weighted = lmf("train", "lisa", *line, "--sampler", "weighted", "--layer-weights", "layers.json")
    assert weighted.code == 0, weighted.err


def test_the_help_names_it_without_torch():
    done = lmf_without_torch("profile", "--help")
    assert done.code == 0
    assert "gradients" in done.out


def test_what_is_wrong_with_a_run_is_wrong_here(line):
    done = lmf("profile", "gradients", "train", "lisa", *line, "--rank", "8")
    assert (done.code, done.out) == (2, "")
    assert "--rank is a flag of lora, not of lisa." in done.err
