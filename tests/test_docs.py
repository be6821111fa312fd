"""The plugin author's page: its files are built, installed, loaded and tested as it says."""

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import make_dataclass, replace
from pathlib import Path
from types import ModuleType

import lmf
import pytest
from distributions import pip_install

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/writing-a-plugin.md").read_text()


def blocks(*languages: str) -> list[str]:
    """The contents of the page's fenced blocks in these languages."""
    return re.findall(rf"^```(?:{'|'.join(languages)})\n(.*?)^```$", PAGE, re.M | re.S)


def files() -> dict[str, str]:
    """The files that the page shows, by path; the blocks of one file follow each other."""
    found = defaultdict(list)
    for block in blocks("python", "toml"):
        path = re.match(r"# (\S+/\S+\.\w+)\n", block)
        if path:
            found[path[1]].append(block)
    return {path: "\n\n".join(parts) for path, parts in found.items()}


def run(environment: dict[str, str], *command: str, folder: Path | None = None) -> str:
    done = subprocess.run([sys.executable, *command], env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of the page."""
    folder = tmp_path_factory.mktemp("docs")
    for path, text in files().items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text)
    return folder


@pytest.fixture(scope="module")
def environment(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which the plugins of the page are installed."""
    distributions = sorted(file.parent for file in folder.glob("*/pyproject.toml"))
    return pip_install(tmp_path_factory.mktemp("site"), *distributions) | {"COLUMNS": "200", "NO_COLOR": "1"}


def test_the_page_shows_whole_distributions():
    assert set(files()) == {
        *("acme-chat/pyproject.toml", "acme-chat/acme_chat.py", "acme-chat/test_acme_chat.py"),
        *("acme-bitfit/pyproject.toml", "acme-bitfit/acme_bitfit.py", "acme-bitfit/test_acme_bitfit.py"),
        *(
            "acme-glu/pyproject.toml",
            "acme-glu/acme_glu.py",
            "acme-glu/acme_glu_kernel.py",
            "acme-glu/test_acme_glu.py",
        ),
        *("acme-more/pyproject.toml", "acme-more/acme_more.py"),
    }


def test_every_python_block_of_the_page_belongs_to_a_file():
    assert all(block.startswith("# acme-") for block in blocks("python"))


def test_the_plugins_of_the_page_load(environment):
    rows = json.loads(run(environment, "-m", "lmf_cli", "plugins", "--json"))
    found = {row["package"]: (row["problem"], row["provides"]) for row in rows if row["package"].startswith("acme-")}
    assert found == {
        "acme-bitfit": (None, {"tuning method": ["bitfit"]}),
        "acme-chat": (None, {"template": ["acme"]}),
        "acme-glu": (None, {"kernel": ["acme-glu"]}),
        "acme-more": (
            None,
            {
                "kernel": ["acme-flash"],
                "command": ["greet"],
                "data format": ["faq"],
                "data set": ["acme-faq"],
                "eval task": ["capitals"],
                "metric": ["short"],
                "model family": ["acme-lm"],
                "objective": ["continue"],
                "optimizer": ["momentum"],
            },
        ),
    }


def test_a_kernel_takes_few_lines_beside_the_kernel():
    written = [files()[f"acme-glu/{name}"].splitlines() for name in ("pyproject.toml", "acme_glu.py")]
    assert sum(1 for lines in written for line in lines[1:] if line) <= 30  # without the line that names the file


def test_lmf_plugins_prints_the_row_that_the_page_shows(environment):
    (row,) = (line for line in "".join(blocks("console")).splitlines() if line.startswith("acme-chat "))
    printed = [line.split() for line in run(environment, "-m", "lmf_cli", "plugins").splitlines()]
    assert row.split() in printed


@pytest.mark.parametrize("package", ["acme-chat", "acme-bitfit", "acme-glu"])
def test_the_tests_on_the_page_pass(environment, folder, package):
    module = f"test_{package.replace('-', '_')}.py"
    assert "1 passed" in run(
        environment, "-m", "pytest", "-q", "-p", "no:cacheprovider", module, folder=folder / package
    )


CHECK = """
import tempfile
from pathlib import Path
import acme_more, lmf, torch
from lmf.testing import check_objective, check_task

plugins = lmf.Plugins()
records = [lmf.Record(where=f"texts:{i}", data=text) for i, text in enumerate(["the user says hello", "one and two"])]
check_objective(plugins.objectives["continue"], records, plugins.templates["acme"])

weight = torch.nn.Parameter(torch.ones(2))
optimizer = plugins.optimizers["momentum"].build([{"params": [weight], "lr": 0.5, "weight_decay": 0.0}])
for _ in range(2):
    weight.grad = torch.ones(2)
    optimizer.step()
torch.testing.assert_close(weight.detach(), torch.full((2,), 1 - 0.5 * 1 - 0.5 * (0.9 + 1)))

faq = plugins.formats["faq"]
asked, said = lmf.Message("user", "Wie geht es?"), lmf.Message("assistant", "Gut.")
assert faq.read({"frage": "Wie geht es?", "antwort": "Gut."}) == lmf.Conversation((asked, said))
assert faq.write(lmf.Conversation((asked, said))) == {"frage": "Wie geht es?", "antwort": "Gut."}
for wrong, reason in (
    (lambda: faq.read({"frage": "Wie geht es?", "antwort": ""}), "antwort is empty; there is no reply to learn."),
    (
        lambda: faq.write(lmf.Conversation((asked, said, asked, said))),
        "the format faq cannot express this conversation: it would be read differently.",
    ),
):
    try:
        wrong()
    except lmf.DataError as error:
        assert str(error) == reason
    else:
        raise AssertionError(reason)

Path(acme_more.__file__).with_name("capitals.jsonl").write_text(
    '{"country": "Peru", "cities": ["Lima", "Paris"], "capital": 0}\\n'
    '{"country": "Japan", "cities": ["Lima", "Tokyo"], "capital": 1}\\n'
)
check_task(plugins.tasks["capitals"], Path(tempfile.mkdtemp()), plugins)
assert plugins.metrics["short"].sums(lmf.Problem(), lmf.Written(("Hi",))) == (1.0, 1.0)
assert plugins.kernels["acme-flash"].why_not() in (None, "flash-attn is not installed")
assert plugins.models["acme-lm"].template in plugins.templates
"""


def test_the_examples_of_the_hooks_do_what_the_page_says(environment):
    run(environment, "-c", CHECK)


def test_the_command_on_the_page_runs(environment):
    assert run(environment, "-m", "lmf_cli", "greet", "Acme", "--times", "2") == "Hello, Acme. Hello, Acme.\n"


def test_a_plugin_that_serves_two_versions_is_written_as_the_page_shows(tmp_path):
    (entries,) = (block for block in blocks("toml") if '"lmf.v2"' in block)
    project = files()["acme-chat/pyproject.toml"].replace(
        '[project.entry-points."lmf.v1"]\nchat = "acme_chat"\n', entries
    )
    folder = tmp_path / "acme-chat"
    folder.mkdir()
    (folder / "pyproject.toml").write_text(project)
    (folder / "acme_chat.py").write_text(files()["acme-chat/acme_chat.py"])
    environment = pip_install(tmp_path / "site", folder) | {"LMF_PLUGINS": "acme-chat"}
    code = "import lmf; print([(p.package, p.problem) for p in lmf.Plugins().installed if p.package != 'lmf-core'])"
    assert run(environment, "-c", code) == "[('acme-chat', None)]\n"


def hooks(**functions: Callable[[], object]) -> ModuleType:
    """A module with the given hooks."""
    module = ModuleType("plugin")
    vars(module).update({name: lmf.hookimpl(function) for name, function in functions.items()})
    return module


def test_the_reasons_on_the_page_are_those_that_are_given():
    acme = lmf.Template(name="acme", source="x", user="{content}", assistant="", reply="{content}!", stop=("!",))
    seed = make_dataclass("Options", [("seed", int, lmf.option(1, "Another seed."))])
    bare = ModuleType("plugin")
    vars(bare)["lmf_templates"] = lambda: []
    broken = [
        hooks(lmf_template=lambda: []),
        bare,
        hooks(lmf_templates=lambda: None),
        hooks(lmf_methods=lambda: [acme]),
        hooks(lmf_templates=lambda: [replace(acme, name="Acme Chat")]),
        hooks(lmf_methods=lambda: [lmf.TuningMethod(name="bitfit", summary="x", options=seed, build=lmf.Tuner)]),
    ]
    given = []
    for module in broken:
        with pytest.raises(lmf.PluginError) as caught:
            lmf.Plugins(only=[]).register("acme", module)
        given.append(re.sub(r"Template\(.*?\.\.\.", "Template(...)", str(caught.value)))
    assert given == re.findall(r"^\| .*? \| `(.*)` \|$", PAGE.partition("## When something is wrong")[2], re.M)


def test_every_hook_and_environment_variable_is_on_the_page():
    headings = set(re.findall(r"^### `(\w+)` → `lmf\.(\w+)`$", PAGE, re.M))
    plugins = lmf.Plugins(only=[])
    assert {hook for hook, _ in headings} == set(plugins.registries)
    source = "".join(file.read_text() for file in (ROOT / "packages/core/src/lmf").glob("*.py"))
    used = set(re.findall(r"\"(LMF_(?:PLUGINS|DISABLE_PLUGINS|TRACE))\"", source))
    assert used == set(re.findall(r"^\| `(LMF_\w+)=", PAGE, re.M))
    assert os.environ.keys().isdisjoint(used)
