"""Flags and run files: what is typed, what it means, and what goes before what."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Optional

import pytest
import typer
from lmf import ConfigError, Plugins, option
from lmf_cli import flags
from terminal import hollow_model, lmf, lmf_without_torch, talk
from typer.testing import CliRunner

METHODS = ", ".join(Plugins().methods)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A setting of every type."""

    name: str = option(help="A text.")
    folder: Path = option(Path("out"), "A path.")
    rank: int = option(16, "A whole number.", min=1)
    rate: float = option(0.5, "A number.", above=0)
    quiet: bool = option(False, "A switch.")
    side: Literal["left", "right"] = option("left", "A word.")
    bits: Literal[4, 8] = option(8, "A whole number from a list.")
    kind: Literal["a", "b"] | None = option(None, "A word or nothing.")
    limit: Optional[int] = option(None, "A number or nothing.")  # noqa: UP045 (plugins may write it)
    files: tuple[str, ...] = option((), "Texts.")
    sizes: tuple[int, ...] = option((1, 2), "Numbers.")


@dataclass
class Line:
    """Runs a command with the settings above."""

    seen: dict[str, Any] = field(default_factory=dict)

    def __call__(self, *args: str) -> Settings:
        app = typer.Typer(rich_markup_mode=None)
        app.command()(flags.command({"Settings": Settings}, self.take))
        done = CliRunner().invoke(app, args)
        if isinstance(done.exception, ConfigError):
            raise done.exception
        assert done.exit_code == 0, done.output
        return self.seen["settings"]

    def take(self, settings: Settings, origins: dict[str, str]) -> None:
        self.seen |= {"settings": settings, "origins": origins}


@pytest.fixture
def line() -> Line:
    return Line()


# What a text means


@pytest.mark.parametrize(
    ("typed", "name", "value"),
    [
        (["--folder", "a b/ü"], "folder", Path("a b/ü")),
        (["--rank", "3"], "rank", 3),
        (["--rank=3"], "rank", 3),
        (["--rate", "1e-4"], "rate", 0.0001),
        (["--rate", "2"], "rate", 2.0),
        (["--quiet"], "quiet", True),
        (["--no-quiet"], "quiet", False),
        (["--side", "right"], "side", "right"),
        (["--bits", "4"], "bits", 4),
        (["--kind", "b"], "kind", "b"),
        (["--limit", "7"], "limit", 7),
        (["--limit", "-7"], "limit", -7),
        (["--files", "a"], "files", ("a",)),
        (["--files", "a", "--files", "b"], "files", ("a", "b")),
        (["--sizes", "3", "--sizes", "4"], "sizes", (3, 4)),
        (["--rank", "3", "--rank", "4"], "rank", 4),
        (["--files", "[/red] --rank 3"], "files", ("[/red] --rank 3",)),
        (["--files", "--"], "files", ("--",)),
    ],
    ids=repr,
)
def test_a_text_becomes_the_value_of_its_setting(line, typed, name, value):
    found = getattr(line("--name", "n", *typed), name)
    assert (found, type(found)) == (value, type(value))


def test_what_is_not_given_keeps_its_default(line):
    assert line("--name", "n") == Settings(name="n")


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["--rank", "three"], "--rank is 'three'; it must be a whole number."),
        (["--rank", "1.5"], "--rank is '1.5'; it must be a whole number."),
        (["--rank", ""], "--rank is ''; it must be a whole number."),
        (["--rank", "0"], "--rank is 0; it must be at least 1."),
        (["--rank", "-1"], "--rank is -1; it must be at least 1."),
        (["--rate", "fast"], "--rate is 'fast'; it must be a number."),
        (["--rate", "nan"], "--rate is nan; it must be a finite number."),
        (["--rate", "inf"], "--rate is inf; it must be a finite number."),
        (["--rate", "-inf"], "--rate is -inf; it must be a finite number."),
        (["--rate", "1e999"], "--rate is inf; it must be a finite number."),
        (["--rate", "0"], "--rate is 0.0; it must be greater than 0."),
        (["--side", "rihgt"], "--side is 'rihgt'; it must be one of left, right. Did you mean 'right'?"),
        (["--bits", "5"], "--bits is '5'; it must be one of 4, 8."),
        (["--sizes", "1", "--sizes", "x"], "--sizes is 'x'; it must be a whole number."),
        (["--folder", ""], "--folder is empty."),
        (["--files", ""], "--files is empty."),
    ],
    ids=repr,
)
def test_a_text_without_a_meaning_is_refused_with_the_flag(line, typed, told):
    with pytest.raises(ConfigError) as error:
        line("--name", "n", *typed)
    assert str(error.value) == told


def test_a_setting_without_a_default_is_required(line):
    with pytest.raises(ConfigError, match=r"^--name is required: A text\.$"):
        line()


# What goes before what


@pytest.fixture
def file(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    file = Path("run.toml")
    file.write_text('name = "file"\nrank = 4\nquiet = true\nfiles = ["a", "b"]\n')
    return file


def test_a_flag_goes_before_the_file_and_the_file_before_the_default(line, file):
    settings = line("--config", str(file), "--rank", "2")
    assert settings == Settings(name="file", rank=2, quiet=True, files=("a", "b"))
    origins = {name: line.seen["origins"][name] for name in ("name", "rank", "rate", "quiet")}
    assert origins == {"name": "run.toml", "rank": "flag", "rate": "default", "quiet": "run.toml"}


def test_a_switch_that_the_file_turned_on_can_be_turned_off(line, file):
    assert line("--config", str(file), "--no-quiet").quiet is False


def test_a_list_on_the_command_line_replaces_that_of_the_file(line, file):
    assert line("--config", str(file), "--files", "c").files == ("c",)


def test_a_wrong_value_in_a_file_names_the_file_and_its_key(line, file):
    file.write_text('name = "n"\nrate = "1e-4"\n')
    with pytest.raises(ConfigError, match=r"^rate in run\.toml is '1e-4'; it must be a number\.$"):
        line("--config", str(file))


def test_a_wrong_value_in_a_file_does_not_matter_where_a_flag_replaces_it(line, file):
    file.write_text('name = "n"\nrate = "1e-4"\n')
    assert line("--config", str(file), "--rate", "0.1").rate == 0.1


# The grammar of a run


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    hollow_model(tmp_path / "model")
    (tmp_path / "data.jsonl").write_text(talk())
    return tmp_path


def write(**values: Any) -> None:
    """Write run.toml: a run that works, with other values."""
    values = {"model": "./model", "data": ["data.jsonl"]} | values
    Path("run.toml").write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()))


def planned(*args: str) -> dict[str, list[str]]:
    """The value and the origin of each setting in a plan."""
    done = lmf_without_torch("plan", *args)
    assert (done.code, done.err) == (0, ""), done.err
    rows = [re.split("  +", line.strip()) for line in done.out.splitlines()]
    return {row[0]: row[1:] for row in rows if len(row) == 3}


@pytest.mark.parametrize("method", ["full", "lmf-full:full"])
@pytest.mark.parametrize("objective", ["train", "lmf-sft:train"])
def test_the_method_can_come_from_the_file(folder, objective, method):
    write(objective=objective, method=method, steps=5)
    plan = planned("train", "--config", "run.toml")
    assert plan["objective"] == ["lmf-sft:train", "run.toml"]
    assert plan["method"] == ["lmf-full:full", "run.toml"]
    assert plan["--steps"] == ["5", "run.toml"]


@pytest.mark.parametrize("spelling", [["--config", "run.toml"], ["--config=run.toml"]])
def test_flags_may_stand_before_the_file_that_names_the_method(folder, spelling):
    write(method="full", steps=5)
    assert planned("train", "--steps", "7", *spelling)["--steps"] == ["7", "flag"]


def test_a_method_may_be_named_twice_if_it_is_the_same(folder):
    write(method="lmf-full:full")
    assert planned("train", "full", "--config", "run.toml")["method"] == ["lmf-full:full", "run.toml"]


def test_a_method_on_the_command_line_suffices(folder):
    write()
    plan = planned("train", "lora", "--config", "run.toml")
    assert plan["method"] == ["lmf-lora:lora", "command"]
    assert plan["--rank"] == ["16", "default"]


def test_settings_of_the_method_are_keys_of_the_file(folder):
    write(method="lora", rank=4)
    assert planned("train", "--config", "run.toml")["--rank"] == ["4", "run.toml"]


def test_qualified_names_work_on_the_command_line(folder):
    write()
    assert planned("lmf-sft:train", "lmf-full:full", "--config", "run.toml")["--seed"] == ["0", "default"]


@pytest.mark.parametrize(
    ("values", "args", "told"),
    [
        (
            {"method": "lora"},
            ["train", "full"],
            "The method is 'full' on the command line and 'lora' in run.toml; leave out one.",
        ),
        (
            {"objective": "pretrain", "method": "full"},
            ["train"],
            "run.toml is a run of the objective 'pretrain': lmf pretrain ... --config run.toml",
        ),
        (
            {"objective": "pretrain"},
            ["train", "full"],
            "run.toml is a run of the objective 'pretrain': lmf pretrain ... --config run.toml",
        ),
        (
            {},
            ["train"],
            f'run.toml names no method. Add method = "NAME", or write lmf train NAME. Methods: {METHODS}.',
        ),
        ({"method": 3}, ["train"], "method in run.toml is 3; it must be text."),
        ({"objective": ["train"]}, ["train", "full"], "objective in run.toml is ['train']; it must be text."),
        ({"method": "fulll"}, ["train"], "No tuning method is called 'fulll'. Did you mean 'full'?"),
        ({"objective": "trian"}, ["train", "full"], "No objective is called 'trian'. Did you mean 'train'?"),
        ({"rank": 4}, ["train", "full"], "run.toml: no setting is called 'rank'."),
    ],
)
@pytest.mark.parametrize("plan", [[], ["plan"]], ids=["run", "plan"])
def test_a_file_that_does_not_fit_the_command_line_is_refused(folder, plan, values, args, told):
    write(**values)
    done = lmf_without_torch(*plan, *args, "--config", "run.toml")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {told}")


def test_flags_without_a_method_ask_for_one(folder):
    done = lmf_without_torch("train", "--steps", "3")
    assert done.code == 2
    assert done.err == (f"error: lmf train needs a method before its flags: lmf train METHOD. Methods: {METHODS}.\n")


def test_the_help_of_a_method_can_be_reached_through_the_file(folder):
    write(method="lora")
    assert "--rank INTEGER" in lmf("train", "--config", "run.toml", "--help").out
