"""What the commands print, write and answer to other programs."""

import dataclasses
import json
import re
import shlex
import struct
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lmf_cli.app
import pytest
from lmf import Command, PluginError, Plugins, hookimpl
from lmf_cli.runs import sketch
from terminal import Done, batch, fresh, hollow_model, lmf, lmf_without_torch, talk, tree
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]

# A run, from training to its picture


@dataclasses.dataclass(frozen=True)
class Session:
    """A folder in which commands have run, and what each of them left behind."""

    folder: Path
    done: dict[str, Done]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """Two short runs of a tiny model and what can be done with them, in one process that loads torch once."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "data.jsonl").write_text("".join(talk(f"Ping {i}?", f"Pong {i}!") for i in range(8)))
    base = ["--model", "./model", "--data", "data.jsonl", "--template", "chatml", "--batch-size", "4"]
    lines = {
        "train": ["train", "full", *base, "--eval-split", "0.25", "--sample", "Ping?", "--output", "runs/my run"],
        "again": ["train", "--config", "runs/my run/run.toml", "--output", "runs/again"],
        "generate": ["generate", "runs/my run", "Ping?", "--max-tokens", "4"],
        "twice": ["generate", "runs/my run", "Ping?", "--max-tokens", "4"],
    }
    return Session(folder, dict(zip(lines, batch(folder, lines.values()), strict=True)))


@pytest.fixture
def runs(session: Session, monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.chdir(session.folder)
    return session


def test_a_run_tells_what_it_does_and_what_comes_next(runs):
    done = runs.done["train"]
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("lmf train full: loading\n")
    assert "before training, asked 'Ping?':" in done.out
    assert "after training, asked 'Ping?':" in done.out
    assert "\nstep 2/2  loss " in done.out
    assert "\nheld-out loss " in done.out
    assert done.out.endswith("""next: lmf generate 'runs/my run' "Who are you?"\n""")


def test_a_run_can_be_repeated_from_its_own_file(runs):
    done = runs.done["again"]
    assert (done.code, done.err) == (0, "")
    first, again = (json.loads(Path(f"runs/{name}/lmf.json").read_text()) for name in ("my run", "again"))
    assert again["best"] == first["best"]
    assert again["settings"] | {"output": None} == first["settings"] | {"output": None}


def test_generate_prints_one_reply_and_nothing_else(runs):
    done = runs.done["generate"]
    assert (done.code, done.err) == (0, "")
    assert done.out.endswith("\n")
    assert done == runs.done["twice"]


def test_runs_list_shows_every_run_under_a_folder(runs):
    found = json.loads(lmf_without_torch("runs", "list", "--json").out)
    assert [run["folder"] for run in found] == ["runs/again", "runs/my run"]
    record = json.loads(Path("runs/again/lmf.json").read_text())
    assert found[0] == {
        "folder": "runs/again",
        "objective": "train",
        "method": "full",
        "model": "./model",
        "status": "finished",
        "steps": 2,
        "held_out_loss": record["best"]["loss"],
        "updated": record["updated"],
    }
    text = lmf_without_torch("runs", "list", "runs").out.splitlines()
    assert text[0].split("  ")[0] == "folder"
    assert [line.partition("  ")[0] for line in text[1:]] == ["runs/again", "runs/my run"]


def test_runs_list_says_so_if_there_are_none(tmp_path):
    done = lmf_without_torch("runs", "list", str(tmp_path))
    assert (done.code, done.out, done.err) == (1, "", f"error: There is no run of lmf in {tmp_path}.\n")
    assert json.loads(lmf_without_torch("runs", "list", str(tmp_path), "--json").out) == []


def test_a_damaged_record_is_one_row_of_the_list(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in {"cut": "{", "old": '{"settings": {}}'}.items():
        Path(name).mkdir()
        Path(name, "lmf.json").write_text(text)
    rows = [(run["folder"], run["status"]) for run in json.loads(lmf_without_torch("runs", "list", "--json").out)]
    assert rows == [("cut", "damaged"), ("old", None)]
    assert lmf_without_torch("runs", "list").code == 0
    assert lmf_without_torch("runs", "show", "old").code == 0


def test_runs_show_gives_the_whole_record(runs):
    record = json.loads(Path("runs/again/lmf.json").read_text())
    assert json.loads(lmf_without_torch("runs", "show", "runs/again", "--json").out) == record
    rows = [line.split() for line in lmf_without_torch("runs", "show", "runs/again").out.splitlines()]
    assert ["status", "finished"] in rows
    assert ["data", "data.jsonl"] in rows
    assert ["lmf-full", version("lmf-full")] in rows
    assert ["torch", version("torch")] in rows


def test_runs_plot_writes_a_png_file_and_draws_in_the_terminal(runs, tmp_path):
    done = lmf("runs", "plot", "runs/again", "--file", str(tmp_path / "curve"))
    assert (done.code, done.err) == (0, "")
    png = (tmp_path / "curve").read_bytes()
    assert png.startswith(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    width, height = struct.unpack(">II", png[16:24])
    assert width > 600 and height > 300
    assert png.endswith(b"IEND\xaeB`\x82")
    assert done.out.splitlines()[-1] == f"saved {tmp_path / 'curve'}"
    assert "steps 1 to 2" in done.out
    assert "held-out loss" in done.out


def test_the_picture_goes_into_the_folder_of_the_run(runs):
    done = lmf("runs", "plot", "runs/my run")
    assert done.out.endswith("saved runs/my run/loss.png\n")
    assert Path("runs/my run/loss.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_curve_is_drawn_in_the_terminal_only(runs):
    before = tree(Path("runs/again"))
    done = lmf_without_torch("runs", "plot", "runs/again")
    assert done.code == 1
    assert done.err == "error: The PNG file needs matplotlib: pip install lmf-cli[plot]\n"
    assert "steps 1 to 2" in done.out
    assert tree(Path("runs/again")) == before


def test_a_picture_that_cannot_be_written_is_an_error(runs):
    done = lmf("runs", "plot", "runs/again", "--file", "nosuch/loss.png")
    assert (done.code, done.err) == (1, "error: --file nosuch/loss.png cannot be written: No such file or directory.\n")


@pytest.mark.parametrize("command", ["show", "plot"])
def test_a_folder_without_a_run_is_named(command, tmp_path):
    done = lmf_without_torch("runs", command, str(tmp_path))
    assert (done.code, done.out) == (1, "")
    assert done.err == f"error: {tmp_path} holds no run of lmf: lmf.json is missing.\n"


def test_a_falling_curve_falls_from_the_upper_left_to_the_lower_right():
    lines = list(sketch([(1, 4.0), (2, 3.0), (3, 2.0)], height=3))
    assert lines == ["   4.0000 |*", "   3.0000 | *", "   2.0000 |  *", "     loss +---  steps 1 to 3"]


def test_a_column_of_a_long_curve_is_the_mean_of_its_steps():
    curve = [(i, 2.0 if i % 2 else 0.0) for i in range(1, 201)] + [(i, 5.0) for i in range(201, 401)]
    lines = list(sketch(curve, width=4, height=2))
    assert lines == ["   5.0000 |  **", "   1.0000 |**", "     loss +----  steps 1 to 400"]


@pytest.mark.parametrize("curve", [[(1, 2.0)], [(1, 2.0), (2, 2.0)]])
def test_a_flat_curve_is_a_line(curve):
    assert list(sketch(curve))[-2] == f"   2.0000 |{'*' * len(curve)}"


# Plans


def test_a_plan_shows_the_run_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hollow_model(tmp_path / "model")
    Path("data.jsonl").write_text(talk() * 3)
    Path("held.jsonl").write_text(talk())
    before = tree(tmp_path)
    line = ["plan", "train", "full", "--model", "./model", "--data", "data.jsonl", "--eval-data", "held.jsonl"]
    done = lmf_without_torch(*line, "--sample", "[/bold] über", "--no-save-best")
    assert (done.code, done.err) == (0, "")
    rows = [re.split("  +", line.strip()) for line in done.out.splitlines()]
    assert rows[0] == ["setting", "value", "from"]
    assert ["method", "lmf-full:full", "command"] in rows
    assert ["--sample", "[/bold] über", "flag"] in rows
    assert ["--save-best", "False", "flag"] in rows
    assert ["--batch-size", "16", "default"] in rows
    assert ["--learning-rate", "2e-05", "default of full"] in rows
    assert done.out.splitlines()[-5:] == [
        "data: data.jsonl: 3 records, format messages",
        "held-out data: held.jsonl: 1 records, format messages",
        "model: model",
        "memory: no forecast: torch is not installed: pip install lmf-core[torch]",
        "Nothing was started. Leave out the word plan to start.",
    ]
    assert tree(tmp_path) == before


# Listings


def test_models_lists_families_and_checkpoints():
    plugins = Plugins()
    found = json.loads(lmf_without_torch("models", "--json").out)
    assert found["checkpoints"]["smollm2-135m"].startswith("SmolLM2-135M-Instruct")
    families = {f"{each['package']}:{each['name']}": each for each in found["families"]}
    assert set(families) == {f"{package}:{spec.name}" for package, spec in plugins.models.all()}
    assert families["lmf-templates:llama"]["template"] == plugins.models["llama"].template
    text = lmf_without_torch("models").out
    assert "smollm2-135m  SmolLM2-135M-Instruct" in text


def test_plugins_lists_packages_versions_and_names():
    rows = {row["package"]: row for row in json.loads(lmf_without_torch("plugins", "--json").out)}
    assert rows["lmf-full"]["version"] == version("lmf-full")
    assert rows["lmf-full"]["provides"] == {"tuning method": ["full", "freeze"]}
    lines = lmf_without_torch("plugins").out.splitlines()
    assert ["lmf-full", version("lmf-full"), "tuning", "method:", "full,", "freeze"] in [line.split() for line in lines]


def test_plugins_check_succeeds_if_all_are_well():
    done = lmf_without_torch("plugins", "check")
    assert (done.code, done.err) == (0, "")
    assert done.out == f"{len(Plugins().installed)} plugins, all usable, no name defined twice\n"


def test_broken_plugins_disturb_no_json_and_are_found_by_check(installed_plugins):
    for line in (["plugins"], ["models"], ["runs", "list"]):
        done = fresh(*line, "--json", environment=installed_plugins)
        assert (done.returncode, done.stderr) == (0, "")
        json.loads(done.stdout)
    check = fresh("plugins", "check", environment=installed_plugins)
    assert (check.returncode, check.stderr) == (3, "")


# Names of commands


class Acme:
    """A plugin with a command of its own and one that has the name of ours."""

    @staticmethod
    @hookimpl
    def lmf_commands():
        what = "Greet [somebody]."
        return [Command(name=name, summary=what, build=lambda: greet) for name in ("greet", "plan")]


def greet(name: str = "world") -> None:
    print(f"Hello, {name}.")


@pytest.fixture
def contested() -> Plugins:
    plugins = Plugins()
    plugins.register("acme", Acme())
    return plugins


def run(plugins: Plugins, *args: str) -> str:
    done = CliRunner().invoke(lmf_cli.app.build(plugins), args)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_a_plugin_adds_a_command(contested):
    assert run(contested, "greet", "--name", "Acme") == "Hello, Acme.\n"
    assert "  greet      Greet [somebody].\n" in run(contested, "--help")


def test_a_command_that_two_packages_define_belongs_to_neither(contested):
    with pytest.raises(PluginError, match=r"^2 packages define the command 'plan': acme, lmf-cli\. Ask for acme:plan"):
        run(contested, "plan")
    assert run(contested, "acme:plan") == "Hello, world.\n"
    assert "--schedule" in run(contested, "lmf-cli:plan", "train", "full", "--help")
    assert "\n  plan " not in run(contested, "--help")


def test_a_contested_command_is_a_problem_that_check_names(contested):
    done = CliRunner().invoke(lmf_cli.app.build(contested), ["plugins", "check"])
    assert done.exit_code == 3
    assert "2 packages define the command 'plan': acme, lmf-cli" in done.output.splitlines()


# The terminal


def progress(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], **variables: str) -> str:
    """What a run of two steps shows."""
    from lmf_cli.progress import Progress

    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    shown = Progress()
    shown.note("[bold]loading[/bold]")
    shown.start(0, 2)
    shown.evaluated({"step": 0, "eval_loss": 2.0})
    for step in (1, 2):
        entry: dict[str, Any] = {"step": step, "loss": 1.0 / step, "tokens": 30, "tokens_per_second": 60.0}
        shown.step(entry)
    shown.evaluated({"step": 2, "eval_loss": 0.5})
    shown.end()
    shown.done(Path("out"))
    return capsys.readouterr().out


def test_without_a_terminal_a_run_is_a_few_lines(monkeypatch, capsys):
    assert progress(monkeypatch, capsys).splitlines() == [
        "[bold]loading[/bold]",
        "step 0: held-out loss 2.0000 nats per token",
        "step 2/2  loss 0.5000  60 tokens/s",
        "step 2: held-out loss 0.5000 nats per token",
        "held-out loss 2.0000 before, 0.5000 after",
        "saved out after 0 min 0 s",
        'next: lmf generate out "Who are you?"',
    ]


def test_on_a_terminal_a_run_has_a_bar(monkeypatch, capsys):
    text = progress(monkeypatch, capsys, FORCE_COLOR="1", TERM="xterm", COLUMNS="100")
    assert "2/2" in text
    assert "step 0: held-out loss 2.0000 nats per token" in text


def test_of_several_processes_only_the_first_speaks(monkeypatch, capsys):
    assert progress(monkeypatch, capsys, RANK="1") == ""
    assert progress(monkeypatch, capsys, RANK="0") != ""


def test_a_closed_pipe_ends_the_command_in_silence(tmp_path):
    for line in ("plugins --json", "--help", "models"):
        done = subprocess.run(
            ["bash", "-c", f"{sys.executable} -m lmf_cli {line} | true; echo ${{PIPESTATUS[0]}}"],
            capture_output=True,
            text=True,
        )
        assert (done.stdout, done.stderr) == ("1\n", "")
        closed = subprocess.run(["bash", "-c", f"{sys.executable} -m lmf_cli {line} >&-"], capture_output=True)
        assert (closed.returncode, closed.stderr) == (0, b"")


def test_a_terminal_without_unicode_gets_escapes(tmp_path):
    folder = tmp_path / "mein Ordner ü"
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    hollow_model(folder / "model", vocab_size=64, **small)
    (folder / "daten ß.jsonl").write_text(talk("Grüß Gott 中文"))
    done = fresh(
        *("plan", "train", "full", "--model", "./model", "--data", "daten ß.jsonl", "--sample", "中"),
        folder=folder,
        environment={"LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "data: daten \\xdf.jsonl: 1 records" in done.stdout
    missing = fresh("plan", "train", "full", "--model", "./ü", "--data", "daten ß.jsonl", folder=folder)
    assert missing.returncode == 2
    assert "--model ./ü: no such folder" in missing.stderr


# The page


PAGE = (ROOT / "packages/cli/README.md").read_text()
(EXAMPLE,) = re.findall(r"^```toml\n(.*?)^```", PAGE, re.M | re.S)


@pytest.mark.parametrize("line", re.findall(r"^\$ lmf (.*)$", PAGE, re.M))
def test_an_example_on_the_page_has_commands_and_flags_that_exist(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    for file in ("run.toml", "out/run.toml"):
        Path(file).write_text(EXAMPLE)
    done = lmf_without_torch(*shlex.split(line), "--help")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("Usage: ")


def test_the_run_file_on_the_page_is_all_right(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hollow_model(tmp_path / "model")
    Path("run.toml").write_text(EXAMPLE)
    done = lmf_without_torch("plan", "train", "--config", "run.toml", "--model", "./model", "--steps", "20")
    assert (done.code, done.err) == (0, "")
    assert re.search(r"^--rank +8 +run\.toml", done.out, re.M)


def test_the_page_names_every_command_and_every_variable():
    listed = set(re.findall(r"^  ([a-z]+)  ", lmf("--help").out, re.M))
    named = set(re.findall(r"`lmf ([a-z]+)", PAGE))
    assert listed - set(Plugins().objectives) == named - set(Plugins().objectives)
    source = "".join(file.read_text() for file in (ROOT / "packages/core/src/lmf").rglob("*.py"))
    assert set(re.findall(r"\"(LMF_[A-Z_]+)\"", source)) == set(re.findall(r"^\| `(LMF_[A-Z_]+)=", PAGE, re.M))
