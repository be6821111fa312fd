"""Plugins of third parties, installed by pip and seen from a fresh interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from lmf.testing import tiny_checkpoint

ROWS = {
    "acme-bitfit": ("0.3", None, {"tuning method": ["bitfit"]}),
    "acme-broken": (
        "0.1",
        "entry point broken = acme_broken: ModuleNotFoundError: No module named 'acme_sdk'",
        {},
    ),
    "acme-clash": ("0.2", None, {"template": ["chatml", "acme-chatml"]}),
    "acme-hookfail": (
        "0.4",
        "entry point hookfail = acme_hookfail: OSError: the catalogue of optimizers is gone",
        {},
    ),
    "acme-old": (
        "0.9",
        "entry point old = acme_old: speaks the hook API lmf.v0, but this lmf-core lmf.v1; upgrade acme-old",
        {},
    ),
    "acme-template": ("1.2", None, {"template": ["acme"]}),
}


def python(environment: dict[str, str], code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def lmf(environment: dict[str, str], *arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the ``lmf`` command in a fresh interpreter."""
    command = [sys.executable, "-m", "lmf_cli", *arguments]
    wide = environment | {"COLUMNS": "300", "NO_COLOR": "1"}
    return subprocess.run(command, env=wide, cwd=folder, capture_output=True, text=True)


def ask(environment: dict[str, str], expression: str) -> str:
    """What an expression over ``plugins`` is, or the message of the LmfError that it raises."""
    code = f"import lmf\nplugins = lmf.Plugins()\ntry: print({expression})\nexcept lmf.LmfError as error: print(error)"
    return python(environment, code)


@pytest.fixture(scope="session")
def without_plugins(installed_plugins: dict[str, str]) -> dict[str, str]:
    """The same environment without the folder of the third-party plugins."""
    theirs, _, rest = installed_plugins["PYTHONPATH"].partition(os.pathsep)
    assert Path(theirs, "acme_template.py").exists()
    return installed_plugins | {"PYTHONPATH": rest}


def test_every_installed_plugin_is_a_row_and_a_broken_one_says_why(installed_plugins):
    rows = "[(p.package, p.version, p.problem, p.provides) for p in plugins.installed if p.package.startswith('acme-')]"
    found = json.loads(ask(installed_plugins, f"__import__('json').dumps({rows})"))
    assert {package: tuple(row) for package, *row in found} == ROWS


def test_a_template_of_a_third_party_renders(installed_plugins):
    render = "plugins.templates['acme'].render([lmf.Message('user', 'Ping?')], reply=True)"
    assert ask(installed_plugins, f"''.join(piece.text for piece in {render})") == "[user] Ping?\n[acme] \n"


def test_a_method_of_a_third_party_can_be_built(installed_plugins):
    method = "plugins.methods['bitfit']"
    build = f"{method}.build({method}.options(), lmf.ModelSpec(name='x', template='acme'))"
    assert ask(installed_plugins, f"{build}.endings") == "('bias', 'norm.weight')\n"


def test_nothing_of_a_broken_plugin_is_there_and_who_asks_is_told_why(installed_plugins):
    told = ask(installed_plugins, "plugins.optimizers['acme-sgd']").splitlines()
    assert told[0].startswith("No optimizer is called 'acme-sgd'.")
    for package in ("acme-broken", "acme-hookfail", "acme-old"):
        version, problem, _ = ROWS[package]
        assert f"{package} {version} is installed but unusable: {problem}" in told


def test_a_name_that_two_packages_define_is_refused_with_both_named(installed_plugins):
    assert ask(installed_plugins, "plugins.templates['chatml']") == (
        "2 packages define the template 'chatml': acme-clash, lmf-templates. "
        "Ask for acme-clash:chatml or lmf-templates:chatml.\n"
    )
    assert ask(installed_plugins, "'chatml' in plugins.templates") == "False\n"
    assert ask(installed_plugins, "plugins.templates['acme-chatml'].source") == "https://acme.example/chatml\n"


def test_a_qualified_name_always_works(installed_plugins):
    ours = ask(installed_plugins, "plugins.templates['lmf-templates:chatml'].source")
    theirs = ask(installed_plugins, "plugins.templates['acme-clash:chatml'].source")
    assert theirs == "https://acme.example/chatml\n"
    assert ours.startswith("https://github.com/")
    assert ask(installed_plugins, "plugins.templates['acme-template:acme'].name") == "acme\n"


def test_a_disabled_package_frees_the_name_it_contests(installed_plugins):
    environment = installed_plugins | {"LMF_DISABLE_PLUGINS": "acme-clash"}
    asked = "plugins.templates.qualified(plugins.templates['chatml'])"
    assert ask(environment, asked) == "lmf-templates:chatml\n"


def test_what_is_not_installed_leaves_no_trace(installed_plugins, without_plugins):
    everything = "[plugins.installed, plugins.problems(), [[*r.all()] for r in plugins.registries.values()]]"
    assert "acme" in ask(installed_plugins, everything)
    assert "acme" not in ask(without_plugins, everything)
    told = ask(without_plugins, "plugins.methods['bitfit']")
    assert told.startswith("No tuning method is called 'bitfit'.")
    assert "acme" not in told


def test_listing_third_party_plugins_imports_no_torch(installed_plugins):
    assert ask(installed_plugins, "'torch' in __import__('sys').modules") == "False\n"


# The command


def test_the_command_lists_broken_plugins_beside_the_others(installed_plugins):
    done = lmf(installed_plugins, "plugins", "--json")
    assert done.returncode == 0, done.stderr
    rows = {row["package"]: (row["version"], row["problem"], row["provides"]) for row in json.loads(done.stdout)}
    assert {package: row for package, row in rows.items() if package.startswith("acme-")} == ROWS
    table = lmf(installed_plugins, "plugins").stdout
    for package, (version, problem, provides) in ROWS.items():
        (line,) = (line for line in table.splitlines() if line.startswith(f"{package} "))
        assert line.split()[1] == version
        assert (problem or next(iter(provides))) in line


def test_plugins_check_fails_and_names_every_problem(installed_plugins):
    done = lmf(installed_plugins, "plugins", "check")
    assert done.returncode == 3
    assert "2 packages define the template 'chatml': acme-clash, lmf-templates" in done.stdout.splitlines()
    for package in ("acme-broken", "acme-hookfail", "acme-old"):
        version, problem, _ = ROWS[package]
        assert f"{package} {version} is installed but unusable: {problem}" in done.stdout.splitlines()


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["train", "full", "--help"], ["plan", "--help"]]
)
def test_broken_plugins_stop_no_help(installed_plugins, arguments):
    done = lmf(installed_plugins, *arguments)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_method_of_a_third_party_appears_with_exactly_its_flags(installed_plugins, without_plugins):
    assert "Train only the biases." in lmf(installed_plugins, "train", "--help").stdout
    assert "Train only the biases." not in lmf(without_plugins, "train", "--help").stdout
    assert "--no-norms" in lmf(installed_plugins, "train", "bitfit", "--help").stdout
    assert "--no-norms" not in lmf(installed_plugins, "train", "full", "--help").stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model and one record of data."""
    folder = tmp_path_factory.mktemp("run")
    tiny_checkpoint(folder / "tiny")
    talk = [{"role": "user", "content": "Ping?"}, {"role": "assistant", "content": "Pong!"}]
    (folder / "data.jsonl").write_text(json.dumps({"messages": talk}) + "\n")
    return folder


def test_a_run_with_a_contested_name_is_refused_before_it_starts(installed_plugins, folder):
    line = ("plan", "train", "full", "--model", "tiny", "--data", "data.jsonl", "--template")
    done = lmf(installed_plugins, *line, "chatml", folder=folder)
    assert done.returncode == 3
    assert "Ask for acme-clash:chatml or lmf-templates:chatml." in done.stderr
    assert lmf(installed_plugins, *line, "acme-clash:chatml", folder=folder).returncode == 0
    assert lmf(installed_plugins, *line, "lmf-templates:chatml", folder=folder).returncode == 0


def test_a_run_with_plugins_of_third_parties_finishes_and_cannot_be_repeated_without_them(
    installed_plugins, without_plugins, folder
):
    line = ("--model", "tiny", "--data", "data.jsonl", "--template", "acme", "--steps", "2")
    done = lmf(installed_plugins, "train", "bitfit", *line, folder=folder)
    assert done.returncode == 0, done.stderr
    record = (folder / "out/run.toml").read_text()
    assert 'method = "acme-bitfit:bitfit"\n' in record
    assert "norms = true\n" in record
    again = lmf(without_plugins, "train", "--config", "out/run.toml", "--output", "again", folder=folder)
    assert again.returncode == 2
    assert "No tuning method is called 'acme-bitfit:bitfit'." in again.stderr
    assert not (folder / "again").exists()
