"""What is wrong with a run is said before a model is loaded, with nothing written."""

import dataclasses
import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import Any

import lmf.training.learner
import pytest
from lmf import ConfigError, DataError, Kernel, LmfError, Plugins, RunSettings, UnknownName, hookimpl
from lmf.config import make
from lmf.plan import make_plan
from tinyrun import PLUGINS, Notes, plan, run, talks


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return talks(tmp_path_factory.mktemp("data") / "talks.jsonl", 8)


@pytest.fixture(scope="module")
def finished(tiny, data, tmp_path_factory) -> Path:
    """A run that is done."""
    return run(tiny, data, tmp_path_factory.mktemp("finished") / "out", steps=1)


@pytest.fixture
def done(finished, tmp_path) -> Path:
    """A copy of the finished run, to be overwritten."""
    shutil.copytree(finished, tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def unloaded(monkeypatch) -> None:
    """Let loading a model fail."""
    monkeypatch.setattr(lmf.training.learner, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))


def files(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# What a plan knows


def test_a_plan_knows_every_setting_and_where_it_comes_from(tiny, data, tmp_path):
    settings = make(RunSettings, {"model": str(tiny), "data": str(data), "output": tmp_path / "out"})
    made = make_plan(PLUGINS, "train", "freeze", settings, origins={"model": "flag"})
    values = made.values()
    names = {field.name for field in dataclasses.fields(RunSettings)}
    own = {"objective", "method", "loss_on", "train_end", "first_layers", "last_layers", "modules"}
    assert set(values) == names | own
    assert (values["objective"], values["method"]) == ("lmf-sft:train", "lmf-full:freeze")
    assert values["model"] == str(tiny)
    assert made.origins["model"] == "flag"
    assert len(made.data.records) == 8
    assert not (tmp_path / "out").exists()


def test_a_plan_takes_the_learning_rate_of_its_method_unless_one_is_given(tiny, data, tmp_path):
    values = {"model": str(tiny), "data": str(data), "output": tmp_path / "out"}
    for method in PLUGINS.methods:
        made = make_plan(PLUGINS, "train", method, make(RunSettings, values))
        assert made.settings.learning_rate == PLUGINS.methods[method].learning_rate
        assert made.origins == {"learning_rate": f"default of {method}"}
    made = make_plan(PLUGINS, "train", "full", make(RunSettings, values | {"learning_rate": 0.5}), origins={})
    assert (made.settings.learning_rate, made.origins) == (0.5, {})


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"objective": "trian"}, UnknownName, "No objective is called 'trian'. Did you mean 'train'?"),
        ({"method": "fulll"}, UnknownName, "No tuning method is called 'fulll'. Did you mean 'full'?"),
        ({"template": "chatmll"}, UnknownName, "No template is called 'chatmll'. Did you mean 'chatml'?"),
        ({"optimizer": "adam"}, UnknownName, "No optimizer is called 'adam'. Did you mean 'adamw'?"),
        ({"attention": "flash"}, UnknownName, "No kernel is called 'flash'."),
        ({"log": ("wandbb",)}, ConfigError, "--log wandbb: no such tracker. Did you mean 'wandb'? Trackers: tensorb"),
        ({"patience": 2}, ConfigError, "--patience needs held-out data: give --eval-data or --eval-split."),
        ({"eval_split": 0.1, "eval_data": ("x",)}, ConfigError, "--eval-data and --eval-split are two ways to the sam"),
        (
            {"resume": "newest", "overwrite": True},
            ConfigError,
            "--resume continues a run and --overwrite deletes it; give",
        ),
        ({"resume": "newest"}, ConfigError, "--resume: there is no run in "),
        ({"resume": "step-000001"}, ConfigError, "--resume: there is no run in "),
        ({"data": ("nothing.jsonl",)}, DataError, "nothing.jsonl"),
        ({"eval_data": ("nothing.jsonl",)}, DataError, "nothing.jsonl"),
        ({"model": "./nothing"}, ConfigError, "--model ./nothing: no such folder"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_setting_is_refused_with_nothing_written(change, kind, message, tiny, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values: dict[str, Any] = {"model": str(tiny), "data": str(data), "output": Path("out"), **change}
    names = values.pop("objective", "train"), values.pop("method", "full")
    with pytest.raises(kind) as refused:
        make_plan(PLUGINS, *names, make(RunSettings, values))
    assert message in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_a_kernel_that_cannot_run_here_is_refused_with_its_reason(tiny, data, tmp_path):
    class Module:
        @staticmethod
        @hookimpl
        def lmf_kernels() -> list[Kernel]:
            return [Kernel(name="warp", summary="Fast.", why_not=lambda: "there is no GPU", load=lambda: "warp")]

    plugins = Plugins()
    plugins.register("acme-warp", Module)
    settings = make(RunSettings, {"model": str(tiny), "data": str(data), "output": tmp_path, "attention": "warp"})
    with pytest.raises(LmfError, match=r"^--attention warp cannot run here: there is no GPU\.$"):
        make_plan(plugins, "train", "full", settings)


def test_a_tracker_that_is_not_installed_is_refused_with_what_to_type(tiny, data, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == "wandb" else found(name))
    with pytest.raises(LmfError, match=r"^--log wandb needs the package wandb: pip install wandb$"):
        plan(tiny, data, tmp_path, log="wandb")


# The output folder


def test_a_folder_that_holds_a_run_is_not_used_again_by_mistake(tiny, data, done):
    before = files(done)
    with pytest.raises(ConfigError) as refused:
        plan(tiny, data, done)
    assert str(refused.value) == (
        f"--output {done} holds a run already.\n"
        "Add --resume to continue it, --overwrite to replace it, or choose another folder."
    )
    assert files(done) == before


@pytest.mark.parametrize("more", [{}, {"overwrite": True}], ids=["plain", "overwrite"])
def test_a_folder_with_other_files_is_never_used(more, tiny, data, tmp_path):
    (tmp_path / "thesis.tex").write_text("ten years")
    with pytest.raises(ConfigError, match=r"holds files that are not a run of lmf\. Choose another folder\.$"):
        plan(tiny, data, tmp_path, **more)
    assert (tmp_path / "thesis.tex").read_text() == "ten years"


def test_what_a_killed_start_left_does_not_make_a_folder_used(tiny, data, tmp_path):
    (tmp_path / ".lock").write_text("1\n")
    plan(tiny, data, tmp_path)


@pytest.mark.parametrize("below", ["", "/out", "/some/out"])
def test_an_output_that_is_a_file_or_under_one_is_refused(below, tiny, data, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=f"^--output {tmp_path}/file{below}: {tmp_path}/file is a file; it must be a"):
        plan(tiny, data, Path(f"{tmp_path}/file{below}"))


@pytest.mark.parametrize("exists", [True, False])
def test_an_output_that_cannot_be_written_is_refused(exists, tiny, data, tmp_path, monkeypatch):
    """The right is taken away by hand: to root every folder is writable."""
    asked = []
    monkeypatch.setattr(os, "access", lambda path, mode: asked.append((path, mode)))
    output = tmp_path if exists else tmp_path / "new/out"
    with pytest.raises(ConfigError, match=f"^--output {output}: {tmp_path} is not writable.$"):
        plan(tiny, data, output)
    assert asked == [(tmp_path, os.R_OK | os.W_OK | os.X_OK)]


def test_a_damaged_record_is_named(tiny, data, done):
    (done / "lmf.json").write_text('{"status": "fin')
    with pytest.raises(LmfError, match=rf"^{done}/lmf\.json is damaged: JSONDecodeError: "):
        plan(tiny, data, done, steps=1, resume="newest")


@pytest.mark.parametrize("what", ["model", "data", "held-out data"])
def test_overwriting_does_not_delete_what_the_run_reads(what, tiny, data, done):
    before = files(done)
    inside = talks(done / "inside.jsonl", 3)
    arguments: dict[str, Any] = {"model": tiny, "data": data}
    if what == "held-out data":
        arguments["eval_data"] = str(inside)
    else:
        arguments[what] = {"model": done, "data": inside}[what]
    with pytest.raises(ConfigError) as refused:
        plan(**arguments, output=done, overwrite=True)
    kind, path = ("model", done) if what == "model" else ("data", inside)
    assert str(refused.value) == f"--overwrite would delete the {kind} {path}, which is in --output {done}."
    assert files(done).keys() == before.keys() | {inside}


def test_overwriting_replaces_a_run_and_nothing_of_it_stays(tiny, data, finished, done):
    (done / "adapter").mkdir()
    (done / "adapter/old.safetensors").touch()
    (done / "link").symlink_to(data.parent)
    run(tiny, data, done, "freeze", options={"last_layers": 1}, steps=2, batch_size=4, overwrite=True)
    assert {file.name for file in done.iterdir()} == {file.name for file in finished.iterdir()}
    assert [folder.name for folder in (done / "checkpoints").iterdir()] == ["step-000002"]
    assert json.loads((done / "lmf.json").read_text())["settings"]["method"] == "lmf-full:freeze"
    assert data.exists()


def test_a_run_that_is_half_deleted_is_still_known_for_a_run(tiny, data, done, monkeypatch):
    unlink = Path.unlink

    def delete(path: Path, **options: Any) -> None:
        if path.name == "lmf.json":
            raise KeyboardInterrupt
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", delete)
    with pytest.raises(KeyboardInterrupt):
        run(tiny, data, done, overwrite=True)
    monkeypatch.undo()
    assert [file.name for file in done.iterdir()] == ["lmf.json"]
    run(tiny, data, done, overwrite=True)


# Nothing to learn


def test_data_without_a_token_to_learn_are_refused_before_the_model_is_loaded(unloaded, tiny, tmp_path):
    """The prompts alone are longer than what the cut leaves."""
    record = {"messages": [{"role": "user", "content": "what is one " * 30}, {"role": "assistant", "content": "two"}]}
    file = tmp_path / "long.jsonl"
    file.write_text(f"{json.dumps(record)}\n" * 3)
    with pytest.raises(DataError) as refused:
        run(tiny, file, tmp_path / "out", max_tokens=32, on_overflow="truncate-right")
    assert str(refused.value) == (
        "None of the 3 training examples can be learned from:\n"
        f"  3 with no whole reply within --max-tokens 32, first {file}:1\n"
        "Raise --max-tokens, choose --on-overflow truncate-right, truncate-left or split, "
        "or allow more with --max-dropped."
    )
    assert not (tmp_path / "out").exists()


def test_examples_that_are_dropped_are_counted_and_told(tiny, tmp_path):
    talk = json.dumps({"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "two"}]})
    long = talk.replace("hello", "hello " * 50)
    file = tmp_path / "talks.jsonl"
    file.write_text(f"{talk}\n{long}\n{talk}\n{long}\n")
    report = Notes()
    output = run(tiny, file, tmp_path / "out", max_tokens=32, max_dropped=0.5, report=report)
    assert "training data: dropped: 2 (2 longer than --max-tokens 32)" in report.notes
    assert "training data: examples: 2" in report.notes
    (survey,) = json.loads((output / "lmf.json").read_text())["surveys"]
    assert (survey["records"], survey["examples"], survey["ends"]) == (4, 2, 2)
    assert survey["dropped"] == {"longer than --max-tokens 32": 2}


def test_more_than_a_few_dropped_examples_are_an_error(unloaded, tiny, data, tmp_path):
    with pytest.raises(DataError) as refused:
        run(tiny, data, tmp_path / "out", max_tokens=28)
    assert str(refused.value).splitlines()[:2] == [
        "2 of 8 training examples would be dropped, more than --max-dropped 0.05 allows:",
        f"  2 longer than --max-tokens 28, first {data}:2",
    ]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", ["training", "held-out"])
def test_examples_that_are_too_long_are_an_error_on_request(what, unloaded, tiny, data, tmp_path):
    held_out = {"eval_data": str(data)} if what == "held-out" else {}
    short = tmp_path / "short.jsonl"
    short.write_text(data.read_text().splitlines()[0] + "\n")
    with pytest.raises(DataError) as refused:
        run(tiny, short if held_out else data, tmp_path / "out", max_tokens=28, on_overflow="error", **held_out)
    first, second = str(refused.value).splitlines()
    assert first == (f"2 of 8 {what} examples are longer than --max-tokens 28; the longest has 32 tokens ({data}:6).")
    assert second.startswith("Raise --max-tokens, choose --on-overflow truncate-right")
