"""Dependencies point one way, describing costs no torch, and every leaf is a whole distribution."""

import ast
import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ROOT / "packages"
CORE = PACKAGES / "core/src/lmf"
LEAVES = sorted(file.parent for file in PACKAGES.rglob("pyproject.toml"))
SOURCES = sorted(file for leaf in LEAVES for file in (leaf / "src").rglob("*.py"))

# Each module imports only what stands before it. Those of DESCRIBING run before torch is loaded.
DESCRIBING = (
    *("errors", "cgroups", "config", "conversation", "rope"),
    *(
        f"templates.{name}"
        for name in ("template", "bounds", "sandbox", "jinja", "shield", "traits", "thoughts", "calls")
    ),
    *("settings", "specs", "evaluate.task", "evaluate.metrics", "hookspecs", "plugins", "templates.choose"),
    *("data.textfile", "data.jsonfile"),
    *(f"formats.{name}" for name in ("fields", "toolcalls", "dialogue", "messages", "prompts")),
    *(f"formats.{name}" for name in ("conversations", "preferences", "ratings", "known", "datasetinfo")),
    *(f"data.{name}" for name in ("archive", "fetch", "cache", "tables", "hub", "inputs")),
    *(f"data.{name}" for name in ("records", "reading", "originals", "rewrite", "mixture", "streaming")),
    *("evaluate.tomlfile", "evaluate.sources"),
    *("builtin", "sources", "splits", "runs", "journal", "parallel.words", "parallel.zerofile", "parallel.choice"),
    *("plan", "report", "guard"),
)
RUNNING = (
    *("encoding.private", "encoding.encoder", "encoding.examples", "encoding.fit", "encoding.stream"),
    *("models", "losses", "layers", "memory.machine", "encoding.store", "encoding.material"),
    *(
        "training.trials",
        "training.parts",
        "training.rows",
        "training.angles",
        "training.packing",
        "training.lean",
        "training.loss",
        "training.update",
        "parallel.processes",
        "parallel.pieces",
        "training.checkpoint",
        "training.background",
        "training.supply",
        *(f"generate.{name}" for name in ("sampling", "text", "caches", "drafts", "engine", "batch", "opening")),
        *(f"evaluate.{name}" for name in ("likelihood", "asking", "lengths", "running")),
        "training.learner",
        *(f"parallel.{name}" for name in ("mapping", "copies", "sharded", "zero", "sharing")),
        "parallel.launch",
        *(f"memory.{name}" for name in ("ledger", "forecast", "fitting", "largest", "shortage")),
        "training.gradients",
        "training.output",
        "training.record",
        "training.loop",
        "saving",
    ),
    "testing",
)
LAYERS = DESCRIBING + RUNNING
PARTS = {module.partition(".")[0] for module in LAYERS if "." in module}  # the packages within core
HEAVY = {"torch", "transformers", "numpy", "peft", "accelerate", "safetensors", "tokenizers"}


@dataclass(frozen=True)
class Import:
    """One imported module: its dotted name and where the import stands."""

    module: str
    lazy: bool  # inside a function: it runs when it is needed, not when the module is imported

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]


def names_of(node: ast.ImportFrom) -> list[str]:
    return [alias.name for alias in node.names]


def imports(source: str, package: str) -> Iterator[Import]:
    """Yield what a module in ``package``, a dotted name, imports, without what only a type checker reads."""

    def walk(nodes: Iterable[ast.AST], lazy: bool) -> Iterator[Import]:
        for node in nodes:
            if isinstance(node, ast.Import):
                yield from (Import(alias.name, lazy) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level:
                parent = ".".join(package.split(".")[: package.count(".") + 2 - node.level])
                whole = node.module and node.module not in PARTS  # a module; otherwise the names are modules
                start = f"{parent}.{node.module}" if node.module else parent
                names = [start] if whole else [f"{start}.{name}" for name in names_of(node)]
                yield from (Import(name, lazy) for name in names)
            elif isinstance(node, ast.ImportFrom):
                names = [f"lmf.{name}" for name in names_of(node)] if node.module == "lmf" else [node.module or ""]
                yield from (Import(name, lazy) for name in names)
            elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
                yield from walk(node.orelse, lazy)
            else:
                inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(ast.iter_child_nodes(node), inside)

    return walk(ast.parse(source).body, lazy=False)


def module_of(file: Path) -> str:
    """The top module that a source file belongs to, for example ``lmf_lora``."""
    parts = file.parts
    return parts[len(parts) - parts[::-1].index("src")]


def read(leaf: Path) -> dict[str, Any]:
    return tomllib.loads((leaf / "pyproject.toml").read_text())


def name(path: Path) -> str:
    return str(path.relative_to(PACKAGES))


def test_the_reader_of_imports_sees_every_kind_of_import():
    source = """
import torch.nn as nn, os
from . import plan
from .plugins import read
from lmf import Template
if TYPE_CHECKING:
    import peft
else:
    import json
try:
    import numpy
except ImportError:
    pass
class A:
    import re
    def f(self):
        from lmf_lora.tuner import x
g = lambda: __import__("y")
"""
    found = [(each.module, each.lazy) for each in imports(source, "lmf")]
    eager = ["torch.nn", "os", "lmf.plan", "lmf.plugins", "lmf.Template", "json", "numpy", "re"]
    assert found == [*((module, False) for module in eager), ("lmf_lora.tuner", True)]


def test_there_is_something_to_read():
    assert len(LEAVES) >= 7
    assert {module_of(file) for file in SOURCES} >= {"lmf", "lmf_templates", "lmf_full", "lmf_cli"}


@pytest.mark.parametrize("file", SOURCES, ids=name)
def test_packages_share_code_only_through_lmf(file):
    own = module_of(file)
    others = {each.module for each in imports(file.read_text(), own) if each.top.startswith("lmf_") and each.top != own}
    assert not others, f"{name(file)} imports {sorted(others)}"


def test_the_reader_of_imports_follows_the_dots_out_of_a_package():
    source = "from .encoder import A\nfrom ..errors import B\nfrom . import fit\nfrom ..data import cache"
    found = [each.module for each in imports(source, "lmf.encoding")]
    assert found == ["lmf.encoding.encoder", "lmf.errors", "lmf.encoding.fit", "lmf.data.cache"]


CORE_MODULES = sorted(file for file in CORE.rglob("*.py") if file.parent == CORE or file.name != "__init__.py")


def core_module(file: Path) -> str:
    """The name of a module of core without its ``lmf.``."""
    return ".".join(file.relative_to(CORE).with_suffix("").parts)


@pytest.mark.parametrize("file", CORE_MODULES, ids=core_module)
def test_core_modules_import_only_lower_ones(file):
    module = core_module(file)
    if module == "__init__":
        allowed = set(DESCRIBING)
    else:
        assert module in LAYERS, f"{module} has no place in the order of core's modules: give it one in this test"
        allowed = set(LAYERS[: LAYERS.index(module)])
    for each in imports(file.read_text(), ".".join(["lmf", *module.split(".")[:-1]])):
        if each.top != "lmf":
            continue
        used = each.module.partition(".")[2]
        # what describes may call what runs, at the moment a run needs it
        later = each.lazy and module in DESCRIBING and used in RUNNING
        assert used in allowed or later, f"{module} imports {used}, which does not stand below it"


def test_the_page_on_the_architecture_shows_the_modules_in_this_order():
    page = (ROOT / "docs/architecture.md").read_text()
    shown = page.split("```")[1].splitlines()
    parts, found = {f"{part}:" for part in PARTS}, []
    for line in shown:
        part, *names = line.split() or [""]
        inside = part.removesuffix(":") + "." if part in parts else ""
        found += [inside + name for name in ([] if inside else [part]) + names if name.strip("-")]
    assert tuple(found) == LAYERS
    for module in LAYERS:
        assert re.search(rf"^\|.*`{module.rpartition('.')[2]}`.*\| \S", page, re.MULTILINE), (
            f"{module} is not explained"
        )


@pytest.mark.parametrize("file", sorted(CORE.glob("*/__init__.py")), ids=lambda file: file.parent.name)
def test_a_package_of_core_only_says_what_it_holds(file):
    assert len(ast.parse(file.read_text()).body) == 1


@pytest.mark.parametrize("module", [*DESCRIBING, "__init__"])
def test_what_describes_imports_nothing_heavy_at_the_top(module):
    file = CORE / f"{module.replace('.', '/')}.py"
    heavy = {each.module for each in imports(file.read_text(), "lmf") if not each.lazy and each.top in HEAVY}
    assert not heavy


PLUGIN_MODULES = [file for file in SOURCES if file.name == "__init__.py" and file.parent.parent.name == "src"]


@pytest.mark.parametrize("file", PLUGIN_MODULES, ids=lambda file: file.parent.name)
def test_the_module_that_an_entry_point_names_imports_nothing_heavy_at_the_top(file):
    found = imports(file.read_text(), module_of(file))
    heavy = {each.module for each in found if not each.lazy and each.top in HEAVY | {"datasets", "matplotlib", "rich"}}
    assert not heavy


def test_the_uv_workspace_is_a_link_to_pyproject():
    link = ROOT / "uv.workspace.toml"
    assert link.is_symlink()
    assert link.readlink() == Path("pyproject.toml")
    assert link.read_bytes() == (ROOT / "pyproject.toml").read_bytes()


@pytest.mark.parametrize("leaf", LEAVES, ids=name)
def test_every_leaf_is_a_whole_distribution(leaf):
    document = read(leaf)
    project = document["project"]
    version = project["version"]
    assert "dynamic" not in project
    assert document["build-system"]["build-backend"] == "hatchling.build"
    assert project["description"].endswith(".")
    assert (leaf / project["readme"]).read_text().startswith(f"# {project['name']}\n")
    assert f"\n## {version}\n" in (leaf / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("leaf", LEAVES, ids=name)
def test_distribution_module_and_entry_point_share_one_name(leaf):
    project = read(leaf)["project"]
    module = "lmf" if leaf == PACKAGES / "core" else project["name"].replace("-", "_")
    assert read(leaf)["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == [f"src/{module}"]
    assert [each.name for each in (leaf / "src").iterdir() if each.name != "__pycache__"] == [module]
    for target in project.get("entry-points", {}).get("lmf.v1", {}).values():
        assert target.partition(".")[0] == module


@pytest.mark.parametrize("leaf", LEAVES, ids=name)
def test_every_leaf_asks_for_a_range_of_versions_of_the_core_and_pins_nothing(leaf):
    project = read(leaf)["project"]
    extras = [each for group in project.get("optional-dependencies", {}).values() for each in group]
    needs = project.get("dependencies", []) + extras
    assert not [need for need in needs if "==" in need]
    ours = [need for need in needs if need.startswith("lmf-")]
    if leaf == PACKAGES / "core":
        assert not ours
    else:
        assert len(ours) == 1, f"{project['name']} may require lmf-core only, not {ours}"
        assert re.fullmatch(r"lmf-core(\[torch\])?>=\d+(\.\d+)*,<\d+(\.\d+)*", ours[0])


@pytest.mark.parametrize("leaf", LEAVES, ids=name)
def test_every_leaf_is_a_member_and_a_source_of_the_workspace(leaf):
    uv = read(ROOT)["tool"]["uv"]
    assert any(leaf.relative_to(ROOT).match(member) for member in uv["workspace"]["members"])
    assert uv["sources"][read(leaf)["project"]["name"]] == {"workspace": True}


def test_every_source_of_the_workspace_is_a_leaf():
    assert set(read(ROOT)["tool"]["uv"]["sources"]) == {read(leaf)["project"]["name"] for leaf in LEAVES}


# Code from outside is never run

UNSAFE_CALLS = {
    *("eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load"),
    *(f"{module}.{name}" for module in ("pickle", "marshal", "dill", "joblib") for name in ("load", "loads")),
    *("pickle.Unpickler", "shelve.open"),
}
UNSAFE_MODULES = {"pickle", "marshal", "dill", "joblib", "shelve", "yaml"}  # the names in them, imported by themselves


def unsafe(source: str) -> list[str]:
    """Return the expressions in a module that could run code from a file or a command line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in UNSAFE_MODULES:
            found.append(ast.unparse(node))
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if called in UNSAFE_CALLS or given.get("shell", "False") != "False":
            found.append(ast.unparse(node))
        if called == "torch.load" and given.get("weights_only") != "True":
            found.append(ast.unparse(node))
        if given.get("trust_remote_code") == "True" or given.get("allow_pickle") == "True":
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize(
    "line",
    [
        "eval(text)",
        "exec(text)",
        "os.system(text)",
        "subprocess.run(text, shell=True)",
        "subprocess.run(text, shell=flag)",
        "pickle.load(file)",
        "pickle.loads(data)",
        "from pickle import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "yaml.load(text)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
    ],
)
def test_the_search_for_unsafe_calls_finds(line):
    assert unsafe(f"def f():\n    {line}\n") == [line]


@pytest.mark.parametrize(
    "line",
    [
        "model.eval()",
        "torch.load(path, weights_only=True)",
        "json.load(file)",
        "subprocess.run(words)",
        "from_pretrained(name, trust_remote_code=settings.trust_remote_code)",
    ],
)
def test_the_search_for_unsafe_calls_lets_pass(line):
    assert unsafe(line) == []


@pytest.mark.parametrize("file", SOURCES, ids=name)
def test_no_code_from_outside_is_run(file):
    if name(file).endswith("data/records.py"):  # what it unpickles is memory of its own process, never a file
        calls = unsafe(file.read_text())
        assert calls and all(call.startswith("pickle.loads(") for call in calls)
        assert "open(" not in file.read_text() and "mmap.mmap(-1," in file.read_text()
    else:
        assert unsafe(file.read_text()) == []
