"""Encoded data that are kept: never those of other records, another tokenizer, template or setting."""

import dataclasses
import importlib
import json
import os
import sys
import time
from pathlib import Path

import lmf_sft
import pytest
from lmf import Criterion
from lmf.encoding import store
from lmf.encoding.material import Material, encode_data
from lmf.report import Reporter
from lmf.testing import tiny_checkpoint
from tinyrun import Notes, plan, run, talks, weights
from tokenizers import AddedToken
from transformers import AutoTokenizer


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture
def data(tmp_path) -> Path:
    return talks(tmp_path / "talks.jsonl", 6, turns=2)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache, which keeps however little."""
    monkeypatch.setenv("LMF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "WORTH", 0)
    return tmp_path / "cache" / "encoded"


def encoded(*args: object, **settings: object) -> tuple[Material, bool]:
    """Encode the data of a run. Returns them, and whether they came from the cache."""
    report = Notes()
    material = encode_data(plan(*args, **settings), report)  # type: ignore[arg-type]
    return material, any("taken from the cache" in note for note in report.notes)


def test_the_second_run_has_the_same_examples_from_the_cache(tiny, data, tmp_path):
    first, cached = encoded(tiny, data, tmp_path / "out")
    assert not cached
    second, cached = encoded(tiny, data, tmp_path / "out")
    assert cached
    assert list(second.train) == list(first.train)  # type: ignore[arg-type]
    assert second.surveys == first.surveys


def test_a_run_from_the_cache_gives_the_same_weights(tiny, data, tmp_path):
    outputs = [run(tiny, data, tmp_path / name, steps=3, eval_split=0.3) for name in ("a", "b")]
    first, second = map(weights, outputs)
    assert all((first[name] == second[name]).all() for name in first)


def changed_content(data: Path) -> None:
    data.write_text(data.read_text().replace("hello", "Hello", 1))


def changed_order(data: Path) -> None:
    data.write_text("\n".join(reversed(data.read_text().splitlines())))


def changed_weight(data: Path) -> None:
    lines = [json.loads(line) for line in data.read_text().splitlines()]
    lines[2]["messages"][1]["weight"] = 0.5
    data.write_text("\n".join(map(json.dumps, lines)))


def changed_training(data: Path) -> None:
    lines = [json.loads(line) for line in data.read_text().splitlines()]
    lines[2]["messages"][1]["train"] = False
    data.write_text("\n".join(map(json.dumps, lines)))


@pytest.mark.parametrize("change", [changed_content, changed_order, changed_weight, changed_training])
def test_other_records_are_encoded_anew(change, tiny, data, tmp_path):
    encoded(tiny, data, tmp_path / "out")
    change(data)
    assert not encoded(tiny, data, tmp_path / "out")[1]


@pytest.mark.parametrize(
    "settings",
    [
        {"template": "llama3"},
        {"template": "auto"},
        {"max_tokens": 300},
        {"on_overflow": "split"},
        {"max_dropped": 0.5},
        {"on_bad_record": "skip"},
        {"system": ("Be brief.",)},
        {"reasoning": "disable"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_other_settings_encode_anew(settings, tiny, data, tmp_path):
    encoded(tiny, data, tmp_path / "out")
    assert not encoded(tiny, data, tmp_path / "out", **settings)[1]
    assert encoded(tiny, data, tmp_path / "out", **settings)[1]


@pytest.mark.parametrize("options", [{"loss_on": "all"}, {"loss_on": "last"}, {"train_end": False}])
def test_other_options_of_the_objective_encode_anew(options, tiny, data, tmp_path):
    def of_options(**own: object) -> bool:
        made = plan(tiny, data, tmp_path / "out")
        report = Notes()
        encode_data(dataclasses.replace(made, objective_options=lmf_sft.TrainOptions(**own)), report)  # type: ignore[arg-type]
        return any("taken from the cache" in note for note in report.notes)

    assert not of_options()
    assert not of_options(**options)
    assert of_options(**options)


@pytest.mark.parametrize("settings", [{"seed": 5}, {"batch_size": 3}, {"learning_rate": 0.5}, {"steps": 2}])
def test_settings_that_change_no_token_do_not_encode_anew(settings, tiny, data, tmp_path):
    encoded(tiny, data, tmp_path / "out")
    assert encoded(tiny, data, tmp_path / "out", **settings)[1]


def another_word(tokenizer):
    tokenizer.add_tokens(["hello"])


def another_way(tokenizer):
    tokenizer.add_tokens([AddedToken("<|im_end|>", special=True, rstrip=True)])


def another_end(tokenizer):
    tokenizer.eos_token = "<|im_start|>"


@pytest.mark.parametrize("change", [another_word, another_way, another_end])
def test_another_tokenizer_encodes_anew(change, data, tmp_path):
    model = tiny_checkpoint(tmp_path / "model")
    encoded(model, data, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(model)
    change(tokenizer)
    tokenizer.save_pretrained(model)
    assert not encoded(model, data, tmp_path / "out")[1]


def test_another_chat_template_of_the_model_encodes_anew(data, tmp_path):
    model = tiny_checkpoint(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    for text in ("{{ m.content }}", "{{ m.content }} "):
        tokenizer.chat_template = (
            "{% for m in messages %}<|im_start|>{{ m.role }} " + text + "<|im_end|>{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
        )
        tokenizer.save_pretrained(model)
        assert not encoded(model, data, tmp_path / "out", template="auto")[1]


def test_other_code_encodes_anew(tiny, data, tmp_path, monkeypatch):
    encoded(tiny, data, tmp_path / "out")
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + b"# changed\n" * (path.name == "encoder.py"))
    assert not encoded(tiny, data, tmp_path / "out")[1]


def test_all_code_of_a_plugin_counts(tmp_path, monkeypatch):
    package = tmp_path / "acme_goal"
    (package / "inner").mkdir(parents=True)
    for name, text in {
        "__init__.py": "from .goal import Goal",
        "goal.py": "import lmf\nfrom .inner.helper import cut\nclass Goal(lmf.Criterion): pass",
        "inner/helper.py": "def cut(ids): return ids",
    }.items():
        (package / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    goal = importlib.import_module("acme_goal").Goal
    before = store.code_of(goal)
    assert before == store.code_of(goal) != store.code_of(Criterion)
    (package / "inner/helper.py").write_text("def cut(ids): return ids[:1]")
    assert store.code_of(goal) != before


def test_an_objective_that_is_in_no_file_is_never_cached(monkeypatch):
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    assert store.code_of(type("Goal", (Criterion,), {"__module__": "__main__"})) == []


def test_what_an_ended_run_left_half_written_goes_after_a_day(tiny, data, tmp_path, cache):
    old, new = cache / ".partial-old", cache / ".partial-new"
    for folder in (old, new):
        folder.mkdir(parents=True)
    os.utime(old, (time.time() - 25 * 3600,) * 2)
    encoded(tiny, data, tmp_path / "out")
    assert not old.exists() and new.exists()


@pytest.mark.parametrize("name", ["ids", "bounds", "examples.json", "survey.json"])
def test_a_damaged_entry_is_made_again(name, tiny, data, tmp_path, cache):
    first, _ = encoded(tiny, data, tmp_path / "out")
    (entry,) = cache.iterdir()
    (entry / name).write_bytes((entry / name).read_bytes()[:-8])
    second, cached = encoded(tiny, data, tmp_path / "out")
    assert not cached
    assert list(second.train) == list(first.train)  # type: ignore[arg-type]
    assert encoded(tiny, data, tmp_path / "out")[1]


def test_no_cache_reads_and_writes_nothing(tiny, data, tmp_path, cache):
    assert not encoded(tiny, data, tmp_path / "out", cache=False)[1]
    assert not cache.exists()
    encoded(tiny, data, tmp_path / "out")
    assert not encoded(tiny, data, tmp_path / "out", cache=False)[1]


def test_little_is_not_worth_an_entry(tiny, data, tmp_path, cache, monkeypatch):
    monkeypatch.setattr(store, "WORTH", 10_000)
    encoded(tiny, data, tmp_path / "out")
    assert not cache.exists()


def test_the_entry_that_was_not_used_longest_goes_first(tiny, data, tmp_path, cache, monkeypatch):
    monkeypatch.setattr(store, "KEPT", 2)
    for length in (300, 301):
        encoded(tiny, data, tmp_path / "out", max_tokens=length)
    assert encoded(tiny, data, tmp_path / "out", max_tokens=300)[1]
    encoded(tiny, data, tmp_path / "out", max_tokens=302)
    assert [encoded(tiny, data, tmp_path / "out", max_tokens=length)[1] for length in (300, 302)] == [True, True]
    assert not encoded(tiny, data, tmp_path / "out", max_tokens=301)[1]


def test_a_cache_without_room_is_told_and_stops_nothing(tiny, data, tmp_path, cache):
    cache.parent.mkdir()
    cache.write_text("a file in its place")
    report = Notes()
    material = encode_data(plan(tiny, data, tmp_path / "out"), report)
    assert len(material.train) == 6  # type: ignore[arg-type]
    assert [note for note in report.notes if note.startswith(f"the encoded data are not kept: {cache}")]


def test_held_out_data_have_an_entry_of_their_own(tiny, data, tmp_path, cache):
    other = talks(tmp_path / "other.jsonl", 3)
    made = plan(tiny, data, tmp_path / "out", eval_data=[str(other)])
    encode_data(made, Reporter())
    assert len(list(cache.iterdir())) == 2
