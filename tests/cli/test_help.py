"""``--help``: complete, readable, and there before anything heavy is imported."""

import dataclasses
import os
import re
import subprocess
import sys
import types
import typing
from pathlib import Path

import lmf_cli.app
import pytest
from lmf import ModelSpec, Objective, Plugins, RunSettings, Tuner, TuningMethod, hookimpl, option
from lmf_cli.learn import HEADINGS
from terminal import HEAVY, fresh, hollow_model, lmf, talk
from typer.testing import CliRunner

PLUGINS = Plugins()
PAIRS = [(objective, method) for objective in PLUGINS.objectives for method in PLUGINS.methods]


def words(text: str) -> str:
    """A text without its line breaks, which may stand after a hyphen."""
    return re.sub(r"(?<=\w)- (?=\w)", "-", " ".join(text.split()))


def rows(text: str) -> dict[str, str]:
    """The explanation of each flag or command in a help text, by what stands left of it."""
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        row = re.fullmatch(r"  (\S.*?)(?:  +(\S.*))?", line)
        if row:
            name = row[1]
            found[name] = row[2] or ""
        elif line.startswith("   ") and name:
            found[name] += f" {line.strip()}"
    return {name: words(text) for name, text in found.items()}


def sections(text: str) -> dict[str, list[str]]:
    """The long flags of a help text, without their ``--no-`` forms, by heading."""
    found: dict[str, list[str]] = {}
    heading = ""
    for line in text.splitlines():
        if re.fullmatch(r"\S.*:", line):
            heading = line[:-1]
        elif flag := re.match(r"  (?:-h, )?(--[a-z][a-z0-9-]*)", line):
            found.setdefault(heading, []).append(flag[1])
    return found


def flags_of(settings: type) -> list[str]:
    return ["--" + f.name.replace("_", "-") for f in dataclasses.fields(settings)]


# Every method under every objective


@pytest.mark.parametrize(("objective", "method"), PAIRS)
def test_a_method_has_exactly_its_flags_under_every_objective(objective, method):
    goal, way = PLUGINS.objectives[objective], PLUGINS.methods[method]
    text = lmf(objective, method, "--help").out
    found = [flag for flags in sections(text).values() for flag in flags]
    expected = ["--config", "--help"]
    for settings in (RunSettings, goal.options, way.options):
        expected += flags_of(settings)
    assert found == expected
    assert way.summary in words(text)


def test_the_help_of_lmf_lists_objectives_and_commands_apart():
    text = lmf("--help").out
    assert text.index("Objectives:\n  pretrain ") < text.index("Commands:\n  bench ")
    listed = rows(text)
    assert listed["train"] == "Fine-tune on conversations: learn the assistant's replies."
    assert {"chat", "data", "doctor", "generate", "models", "plan", "plugins", "runs", "templates"} <= set(listed)


@pytest.mark.parametrize("line", [["train"], ["plan", "train"]])
def test_the_help_of_an_objective_lists_the_methods(line):
    listed = rows(lmf(*line, "--help").out)
    for name, method in PLUGINS.methods.items():
        assert listed[name] == method.summary


@pytest.fixture(scope="module")
def full() -> dict[str, str]:
    return rows(lmf("train", "full", "--help").out)


@pytest.mark.parametrize("field", dataclasses.fields(RunSettings), ids=lambda field: field.name)
def test_a_flag_shows_the_help_and_the_default_of_its_setting(full, field):
    flag = "--" + field.name.replace("_", "-")
    ((left, text),) = ((left, text) for left, text in full.items() if re.match(rf"{flag}(?![a-z-])", left))
    hint = typing.get_type_hints(RunSettings)[field.name]
    assert (f"--no-{flag[2:]}" in left) == (hint is bool)
    if isinstance(hint, types.UnionType):
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) is typing.Literal:
        assert left.endswith("|".join(typing.get_args(hint)))
    if hint in (int, float):
        assert left.split()[1] == "|".join([{int: "INTEGER", float: "NUMBER"}[hint], *field.metadata["words"]])
    if field.default is dataclasses.MISSING:
        assert text == f"{field.metadata['help']} [required]"
    elif field.name == "learning_rate":
        assert text == f"{field.metadata['help']} [default: {PLUGINS.methods['full'].learning_rate}]"
    elif field.default in (None, ()):
        assert text == field.metadata["help"]
    else:
        several = ",".join(field.default) if isinstance(field.default, tuple) else str(field.default)
        shown = {True: "yes", False: "no"}[field.default] if hint is bool else several
        assert text == f"{field.metadata['help']} [default: {shown}]"


def test_a_heading_begins_at_a_setting_and_every_flag_has_one():
    assert set(HEADINGS) <= {f.name for f in dataclasses.fields(RunSettings)}
    found = sections(lmf("train", "lora", "--help").out)
    assert list(found) == ["Options", *HEADINGS.values(), "Objective train", "Method lora"]
    assert found["Options"] == ["--config", "--help"]
    assert found["Held-out data"] == [
        "--eval-data",
        "--eval-split",
        "--eval-every",
        "--eval-tasks",
        "--eval-limit",
        "--patience",
    ]
    assert found["Method lora"] == flags_of(PLUGINS.methods["lora"].options)


def test_the_short_flag_says_the_same():
    for line in ([], ["train"], ["train", "full"], ["runs"], ["runs", "plot"], ["generate"], ["data", "split"]):
        assert lmf(*line, "-h") == lmf(*line, "--help")


@pytest.mark.parametrize("line", [[], ["train"], ["plan"], ["plan", "train"], ["runs"], ["data"], ["templates"]])
def test_half_a_command_gets_the_help_as_a_usage_error(line):
    done = lmf(*line)
    assert done.code == 2
    assert "Usage:" in done.out + done.err
    assert rows(done.out + done.err).keys() == rows(lmf(*line, "--help").out).keys()


def test_no_line_is_wider_than_a_narrow_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for line in ([], ["train", "lora"], ["generate"]):
        assert max(map(len, lmf(*line, "--help").out.splitlines())) <= 80


# Plugins


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    share: float = option(0.5, "Share [of/all] the layers; see [/docs].", min=0, max=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Twin:
    share: float = option(0.1, "Share of the answers.")


class Acme:
    """A plugin with a method and an objective that have a setting of the same name."""

    @staticmethod
    @hookimpl
    def lmf_methods():
        return [TuningMethod(name="acme", summary="Train [some] layers.", options=Options, build=build)]

    @staticmethod
    @hookimpl
    def lmf_objectives():
        return [Objective(name="answer", summary="Answers.", data="conversation", options=Twin, build=build)]


def build(options: Options, spec: ModelSpec) -> Tuner:
    return Tuner()


def ask(plugins: Plugins, *args: str) -> str:
    done = CliRunner().invoke(lmf_cli.app.build(plugins), args)
    assert done.exit_code == 0, done.output
    return done.output


def test_a_help_text_is_shown_as_it_was_written():
    plugins = Plugins(only=["lmf-sft"])
    plugins.register("acme", Acme())
    assert rows(ask(plugins, "train", "--help"))["acme"] == "Train [some] layers."
    text = ask(plugins, "train", "acme", "--help")
    assert rows(text)["--share NUMBER"] == "Share [of/all] the layers; see [/docs]. [default: 0.5]"
    assert sections(text)["Method acme"] == ["--share"]


def test_a_pair_that_cannot_be_combined_stops_no_help():
    plugins = Plugins(only=["lmf-full"])
    plugins.register("acme", Acme())
    assert {"acme", "full"} <= set(rows(ask(plugins, "answer", "--help")))
    done = CliRunner().invoke(lmf_cli.app.build(plugins), ["answer", "acme", "--model", "m", "--data", "d"])
    assert str(done.exception).startswith("--share is a setting of ")


# What is imported

QUICK = """
import contextlib, io, sys
import lmf_cli
for line in sys.argv[1].split(";"):
    sys.argv = ["lmf", *line.split()]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            lmf_cli.main()
    except SystemExit as ended:
        assert not ended.code, line
    print(line, *(name for name in HEAVY if name in sys.modules), sep=" | ")
"""


def loaded(*lines: str, folder: Path) -> dict[str, list[str]]:
    """Which heavy modules a process has loaded after each of some commands."""
    code = QUICK.replace("HEAVY", repr(HEAVY))
    done = subprocess.run(
        [sys.executable, "-c", code, ";".join(lines)], cwd=folder, capture_output=True, text=True, check=True
    )
    return {line: found for line, *found in (row.split(" | ") for row in done.stdout.splitlines())}


def test_help_and_listings_import_no_torch(tmp_path):
    hollow_model(tmp_path / "model")
    (tmp_path / "data.jsonl").write_text(talk())
    helps = [
        "--help",
        "train --help",
        "train full --help",
        "plan train lora --help",
        "generate --help",
        "chat --help",
        "runs --help",
    ]
    helps += ["profile --help", "profile memory --help", "profile memory train lora --help"]
    helps += ["data --help", "data check --help", "templates --help", "templates show --help"]
    lists = ["templates list", "templates render llama3", "data check data.jsonl", "data count data.jsonl"]
    lists += ["plugins", "plugins check", "models"]
    assert loaded(*helps, *lists, folder=tmp_path) == {line: [] for line in helps + lists}


# Completion by the shell


def complete(line: str) -> list[str]:
    """What bash would offer for the last word of a line."""
    script = Path(sys.executable).parent / "lmf"
    typed = line.split(" ")
    variables = {"_LMF_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(typed) - 1)}
    done = subprocess.run([script], env=os.environ | variables, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def test_the_shell_completes_commands_methods_flags_and_choices():
    assert complete("lmf tr") == ["train"]
    assert complete("lmf plan train fu") == ["full"]
    assert complete("lmf train full --lear") == ["--learning-rate"]
    assert complete("lmf train full --schedule co") == ["cosine", "constant"]


def test_what_cannot_be_completed_is_no_error():
    assert complete("lmf trian full --mo") == []
    assert complete("lmf train nosuch --mo") == []
    assert complete("lmf train --config nosuch.toml --mo") == []


def test_python_m_lmf_cli_is_the_same_command():
    assert rows(fresh("--help").stdout) == rows(lmf("--help").out)
