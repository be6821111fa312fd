"""Finding plugins, keeping broken ones apart, and names that several packages claim.

The plugins here are installed as pip installs them, a module beside its ``.dist-info``, in a
folder on ``sys.path``; ``importlib.metadata`` finds them by itself.
"""

import importlib
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import lmf.plugins
import pytest
from lmf import PluginError, Plugins, Template, UnknownName, hookimpl

PLAIN = Template(name="plain", source="here", user="{content}", assistant="", reply="{content}!", stop=("!",))
HEAD = """
from dataclasses import dataclass
import lmf

def template(name="bad", reply="{content}!"):
    return lmf.Template(name=name, source="here", user="{content}", assistant="", reply=reply, stop=("!",))

def method(options):
    return lmf.TuningMethod(name="bad", summary="Bad.", options=options, build=lambda options, spec: lmf.Tuner())
"""
GOOD = HEAD + "\n@lmf.hookimpl\ndef lmf_templates():\n    return [template('good')]\n"
Install = Callable[..., None]


def hook(body: str, name: str = "lmf_templates") -> str:
    """The source of a plugin with one hook."""
    return f"{HEAD}\n@lmf.hookimpl\ndef {name}():\n    {body}\n"


def install(site: Path, package: str, source: str = GOOD, *, version: str = "1.0", entries: str = "") -> None:
    """Put a module and its metadata into a folder, as pip does."""
    module = package.replace("-", "_").lower()
    site.mkdir(exist_ok=True)
    (site / f"{module}.py").write_text(source)
    info = site / f"{module}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(entries or f"[lmf.v1]\nmain = {module}\n")
    importlib.invalidate_caches()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on ``sys.path``; the ``acme`` modules imported from it are forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("acme")]:
        del sys.modules[name]


def rows(plugins: Plugins, start: str = "acme") -> list[lmf.plugins.Plugin]:
    return [plugin for plugin in plugins.installed if plugin.package.startswith(start)]


def module(**hooks: Callable[[], object]) -> ModuleType:
    """A plugin module that defines the given hooks."""
    made = ModuleType("plugin")
    vars(made).update({name: hookimpl(function) for name, function in hooks.items()})
    return made


# What works


def test_an_installed_plugin_provides_a_template(site):
    install(site, "acme-good", version="2.3")
    plugins = Plugins(only=["acme-good"])
    (row,) = rows(plugins)
    assert (row.package, row.version, row.problem, row.provides) == ("acme-good", "2.3", None, {"template": ["good"]})
    assert plugins.templates["good"].source == "here"
    assert plugins.templates.qualified(plugins.templates["good"]) == "acme-good:good"
    assert plugins.templates["acme-good:good"] is plugins.templates["good"]


def test_a_plugin_that_is_not_installed_can_be_registered():
    plugins = Plugins(only=[])
    plugins.register("mine", module(lmf_templates=lambda: [PLAIN]))
    assert plugins.templates["plain"] is PLAIN
    assert rows(plugins, "mine")[0].provides == {"template": ["plain"]}


def test_what_is_registered_wrongly_raises_and_leaves_nothing():
    plugins = Plugins(only=[])
    with pytest.raises(PluginError, match=r"^there is no hook 'lmf_templtes'\. Did you mean 'lmf_templates'\?$"):
        plugins.register("mine", module(lmf_templates=lambda: [PLAIN], lmf_templtes=lambda: []))
    assert rows(plugins, "mine") == []
    assert "plain" not in plugins.templates
    plugins.register("mine", module(lmf_templates=lambda: [PLAIN]))
    assert "plain" in plugins.templates


def test_registering_twice_is_refused_and_keeps_the_first():
    plugins = Plugins(only=[])
    mine = module(lmf_templates=lambda: [PLAIN])
    plugins.register("mine", mine)
    with pytest.raises(PluginError, match=r"^is loaded already, as mine$"):
        plugins.register("mine", module())
    with pytest.raises(PluginError, match=r"^is loaded already, as mine$"):
        plugins.register("yours", mine)
    assert list(plugins.templates) == ["plain"]


def test_two_entry_points_of_one_distribution_are_two_plugins(site):
    install(site, "acme-two", entries="[lmf.v1]\none = acme_one\ntwo = acme_two\n")
    (site / "acme_one.py").write_text(hook("return [template('first')]"))
    plugins = Plugins(only=["acme-two"])
    assert [row.provides for row in rows(plugins)] == [{"template": ["first"]}, {"template": ["good"]}]


def test_a_broken_entry_point_does_not_stop_its_sibling(site):
    install(site, "acme-two", entries="[lmf.v1]\none = acme_one\ntwo = acme_two\n")
    (site / "acme_one.py").write_text("import acme_sdk\n")
    plugins = Plugins(only=["acme-two"])
    first, second = rows(plugins)
    assert first.problem == "entry point one = acme_one: ModuleNotFoundError: No module named 'acme_sdk'"
    assert second.problem is None
    assert "good" in plugins.templates


def test_a_hook_of_a_later_version_may_be_marked_optional(site):
    install(site, "acme-new", GOOD + "\n@lmf.hookimpl(optionalhook=True)\ndef lmf_sounds():\n    return ['unread']\n")
    plugins = Plugins(only=["acme-new"])
    assert plugins.problems() == [text for text in plugins.problems() if "acme" not in text]
    assert "good" in plugins.templates


# What is broken

OPTIONS = "@dataclass(frozen=True, kw_only=True)\nclass Options:\n    "
BAD = {
    "import error": ("import acme_sdk\n", "ModuleNotFoundError: No module named 'acme_sdk'"),
    "exit at import": ("raise SystemExit(3)\n", "SystemExit: 3"),
    "exit without a word": ("import sys\nsys.exit()\n", "SystemExit"),
    "panic at import": (
        "class PanicException(BaseException): ...\nraise PanicException('ouch')\n",
        "PanicException: ouch",
    ),
    "syntax error": ("def broken(:\n", "SyntaxError: invalid syntax (acme_bad.py, line 1)"),
    "endless recursion": ("def f(): f()\nf()\n", "RecursionError: maximum recursion depth exceeded"),
    "message that raises": (
        "class E(Exception):\n    def __str__(self): raise ValueError\nraise E\n",
        "E: its message cannot be shown",
    ),
    "bad template at import": (
        HEAD + "template(reply='{content}')\n",
        "template 'bad': reply must end with the first of stop, so that it is learned",
    ),
    "no hooks": ("import lmf\n", "defines no hook of lmf.hookspecs"),
    "no decorator": (HEAD + "def lmf_templates():\n    return [template()]\n", "the function lmf_templates lacks the"),
    "hook with an argument": (HEAD + "@lmf.hookimpl\ndef lmf_templates(config):\n    return [template()]\n", "Plugin "),
    "unknown hook": (hook("return []", "lmf_tasksets"), "there is no hook 'lmf_tasksets'. Did you mean 'lmf_tasks'?"),
    "hook that raises": (hook("raise KeyError('x')"), "KeyError: 'x'"),
    "hook that exits": (hook("raise SystemExit('bye')"), "SystemExit: bye"),
    "half of a list, then an error": (
        HEAD + "@lmf.hookimpl\ndef lmf_templates():\n    yield template()\n    raise OSError('gone')\n",
        "OSError: gone",
    ),
    "one hook good, one bad": (
        hook("return [template()]") + "\n@lmf.hookimpl\ndef lmf_tasks():\n    return [1]\n",
        "returned 1 where a EvalTask was expected",
    ),
    "returns None": (hook("return None"), "lmf_templates returned None; it must return a list of descriptions"),
    "returns text": (hook("return 'chatml'"), "lmf_templates returned 'chatml'; it must return a list of descriptions"),
    "returns a dict": (hook("return {'a': template()}"), "lmf_templates returned {'a': Template("),
    "returns one item": (hook("return template()"), "lmf_templates returned Template("),
    "item of another class": (hook("return [template()]", "lmf_methods"), "returned Template("),
    "item is a class": (
        hook("return [lmf.Template]"),
        "returned <class 'lmf.templates.template.Template'> where a Template or Jinja",
    ),
    "item lacks a field": (hook("return [lmf.Template(name='bad')]"), "TypeError: "),
    "name twice": (hook("return [template(), template()]"), "defines the template 'bad' twice"),
    "name with a colon": (
        hook("return [template('a:b')]"),
        "the template name 'a:b' must be lower-case letters, digits, '.', '_' or '-'",
    ),
    "name in upper case": (hook("return [template('Bad')]"), "the template name 'Bad' must be lower-case letters, "),
    "empty name": (hook("return [template('')]"), "the template name '' must be lower-case letters, "),
    "name is a number": (hook("return [template(7)]"), "the template name 7 must be lower-case letters, "),
    "options are no dataclass": (
        hook("return [method(dict)]", "lmf_methods"),
        "options of the tuning method 'bad' must be a dataclass of lmf.option fields",
    ),
    "options are an object": (
        HEAD + OPTIONS + "x: int = lmf.option(1, 'X.')\n" + hook("return [method(Options())]", "lmf_methods"),
        "options of the tuning method 'bad' must be a dataclass of lmf.option fields",
    ),
    "option of every run": (
        HEAD + OPTIONS + "seed: int = lmf.option(1, 'X.')\n" + hook("return [method(Options)]", "lmf_methods"),
        "option 'seed' of the tuning method 'bad' is already a setting of every run",
    ),
    "option of the command": (
        HEAD + OPTIONS + "config: str = lmf.option('x', 'X.')\n" + hook("return [method(Options)]", "lmf_methods"),
        "option 'config' of the tuning method 'bad' is already a setting of every run",
    ),
    "option without lmf.option": (
        HEAD + OPTIONS + "rank: int = 8\n" + hook("return [method(Options)]", "lmf_methods"),
        "options of the tuning method 'bad': the field 'rank' of Options must be declared with lmf.option",
    ),
    "default out of bounds": (
        HEAD + OPTIONS + "rank: int = lmf.option(0, 'X.', min=1)\n" + hook("return [method(Options)]", "lmf_methods"),
        "options of the tuning method 'bad': the default of --rank is 0; it must be at least 1",
    ),
}


@pytest.mark.parametrize(("source", "cause"), BAD.values(), ids=BAD)
def test_a_broken_plugin_is_a_row_with_its_reason_and_stops_nothing(site, source, cause):
    install(site, "acme-bad", source, version="0.3")
    install(site, "acme-good")
    plugins = Plugins(only=["acme-bad", "acme-good"])
    bad, good = rows(plugins)
    assert (bad.package, bad.version, bad.provides) == ("acme-bad", "0.3", {})
    assert bad.problem is not None
    assert bad.problem.startswith(f"entry point main = acme_bad: {cause}")
    assert "\n" not in bad.problem
    assert len(bad.problem) < 500
    assert (good.problem, good.provides) == (None, {"template": ["good"]})
    assert f"acme-bad 0.3 is installed but unusable: {bad.problem}" in plugins.problems()


@pytest.mark.parametrize(("source", "cause"), BAD.values(), ids=BAD)
def test_nothing_of_a_broken_plugin_stays_registered(site, source, cause):
    install(site, "acme-bad", source)
    plugins = Plugins(only=["acme-bad"])
    left = [package for registry in plugins.registries.values() for package, _ in registry.all()]
    assert "acme-bad" not in left
    plugins.register("acme-bad", module(lmf_templates=lambda: [PLAIN]))  # its place is free
    assert plugins.templates["acme-bad:plain"] is PLAIN


@pytest.mark.parametrize(
    ("entries", "cause"),
    [
        ("[lmf.v1]\nmain = acme_bad:plugin\n", "entry point main = acme_bad:plugin: AttributeError: module 'acme_bad'"),
        ("[lmf.v1]\nmain = acme_nowhere\n", "entry point main = acme_nowhere: ModuleNotFoundError: No module named"),
        ("[lmf.v1]\nmain = not a module\n", "entry point main = not a module: "),
        ("[lmf.v1]\nmain = acme_bad:nothing\n", "entry point main = acme_bad:nothing: defines no hook"),
        ("[lmf.v1]\nmain\n", "its installation in "),
        (
            "[lmf.v0]\nmain = acme_bad\n",
            "entry point main = acme_bad: speaks the hook API lmf.v0, but this lmf-core lmf.v1; upgrade acme-bad",
        ),
        (
            "[lmf.v2]\nmain = acme_bad\n",
            "entry point main = acme_bad: speaks the hook API lmf.v2, but this lmf-core lmf.v1; upgrade lmf-core",
        ),
    ],
)
def test_a_wrong_entry_point_is_a_row_with_its_reason(site, entries, cause):
    install(site, "acme-bad", "nothing = None\n", entries=entries)
    install(site, "acme-good")
    plugins = Plugins(only=["acme-bad", "acme-good"])
    assert [row.package for row in rows(plugins) if row.problem is None] == ["acme-good"]
    (bad,) = [row for row in rows(plugins) if row.problem]
    assert bad.package == "acme-bad"
    assert str(bad.problem).startswith(cause)


def test_a_plugin_for_another_hook_api_is_not_even_imported(site):
    install(site, "acme-old", "raise AssertionError('imported')\n", entries="[lmf.v0]\nmain = acme_old\n")
    plugins = Plugins(only=["acme-old"])
    assert "speaks the hook API lmf.v0" in str(rows(plugins)[0].problem)
    assert "acme_old" not in sys.modules


def test_a_plugin_may_serve_two_hook_apis(site):
    install(site, "acme-both", entries="[lmf.v1]\nmain = acme_both\n[lmf.v2]\nmain = acme_later\n")
    plugins = Plugins(only=["acme-both"])
    assert [(row.problem, row.provides) for row in rows(plugins)] == [(None, {"template": ["good"]})]


def test_two_entry_points_for_one_module_are_one_plugin_and_a_row_that_says_so(site):
    install(site, "acme-good", entries="[lmf.v1]\na = acme_good\nb = acme_good\n")
    plugins = Plugins(only=["acme-good"])
    problems = [row.problem for row in rows(plugins)]
    assert problems == [None, "entry point b = acme_good: is loaded already, as acme-good/a"]
    assert "good" in plugins.templates


def test_a_name_that_two_entry_points_of_one_package_define_is_refused(site):
    install(site, "acme-two", entries="[lmf.v1]\na = acme_one\nb = acme_two\n")
    (site / "acme_one.py").write_text(GOOD)
    problems = [row.problem for row in rows(Plugins(only=["acme-two"]))]
    assert problems == [None, "entry point b = acme_two: defines the template 'good' twice"]


@pytest.mark.parametrize("damage", ["no METADATA", "entry points that are not UTF-8"])
def test_a_damaged_installation_is_a_row_that_names_the_folder(site, damage):
    install(site, "acme-good")
    install(site, "acme-torn")
    info = site / "acme_torn-1.0.dist-info"
    if damage == "no METADATA":
        (info / "METADATA").unlink()
    else:
        (info / "entry_points.txt").write_bytes(b"[lmf.v1]\nmain = caf\xe9\n")
    plugins = Plugins()
    (row,) = rows(plugins, "?")
    assert str(row.problem).startswith(f"its installation in {site} is damaged: ")
    assert "good" in plugins.templates


def test_of_two_installed_versions_the_first_on_the_path_counts(site, tmp_path, monkeypatch):
    install(site / "new", "acme-good", hook("return [template('new')]"), version="2.0")
    install(
        site / "old", "acme-good", version="1.0", entries="[lmf.v1]\nmain = acme_good\nextra = acme_removed_in_two\n"
    )
    monkeypatch.syspath_prepend(site / "old")
    monkeypatch.syspath_prepend(site / "new")
    plugins = Plugins(only=["acme-good"])
    assert [(row.version, row.problem) for row in rows(plugins)] == [("2.0", None)]
    assert "new" in plugins.templates


def test_who_asks_for_what_a_broken_plugin_would_have_is_told_of_it(site):
    install(site, "acme-bad", "import acme_sdk\n")
    plugins = Plugins(only=["acme-bad"])
    hint = (
        "acme-bad 1.0 is installed but unusable: entry point main = acme_bad: "
        "ModuleNotFoundError: No module named 'acme_sdk'"
    )
    with pytest.raises(UnknownName) as caught:
        plugins.methods["bitfit"]
    assert str(caught.value).startswith("No tuning method is called 'bitfit'.")
    assert hint in str(caught.value).splitlines()


def test_an_interrupt_while_loading_is_not_taken_for_a_broken_plugin(site):
    install(site, "acme-slow", "raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        Plugins(only=["acme-slow"])


# Which plugins are loaded


@pytest.fixture
def three(site: Path) -> None:
    for name in ("one", "two", "three"):
        install(site, f"acme-{name}", hook(f"return [template({name!r})]"))


def loaded(plugins: Plugins) -> list[str]:
    return [row.package for row in rows(plugins)]


def test_all_plugins_are_loaded_by_default_in_the_order_of_their_names(three):
    assert loaded(Plugins()) == ["acme-one", "acme-three", "acme-two"]


@pytest.mark.parametrize("value", ["acme-one,acme-two", " acme-one , ACME_Two,, "])
def test_lmf_plugins_names_the_packages_to_load(three, monkeypatch, value):
    monkeypatch.setenv("LMF_PLUGINS", value)
    plugins = Plugins()
    assert [row.package for row in plugins.installed] == ["acme-one", "acme-two", "lmf-core"]
    assert "three" not in plugins.templates


def test_an_empty_lmf_plugins_loads_nothing_but_the_core(three, monkeypatch):
    monkeypatch.setenv("LMF_PLUGINS", "")
    assert [row.package for row in Plugins().installed] == ["lmf-core"]


def test_an_explicit_choice_goes_before_lmf_plugins(three, monkeypatch):
    monkeypatch.setenv("LMF_PLUGINS", "acme-one")
    assert loaded(Plugins(only=["acme-two"])) == ["acme-two"]


def test_lmf_disable_plugins_leaves_packages_out(three, monkeypatch):
    monkeypatch.setenv("LMF_DISABLE_PLUGINS", "acme-one,lmf-core")
    plugins = Plugins()
    assert loaded(plugins) == ["acme-three", "acme-two"]
    assert "lmf-core" in [row.package for row in plugins.installed]
    assert loaded(Plugins(only=["acme-one", "acme-two"])) == ["acme-two"]


def test_a_broken_plugin_that_is_disabled_is_silent(site, monkeypatch):
    install(site, "acme-bad", "import acme_sdk\n")
    monkeypatch.setenv("LMF_DISABLE_PLUGINS", "acme-bad")
    plugins = Plugins()
    assert loaded(plugins) == []
    assert not any("acme" in problem for problem in plugins.problems())


def test_a_package_that_lmf_plugins_names_and_that_is_not_there_is_reported(three, monkeypatch):
    monkeypatch.setenv("LMF_PLUGINS", "acme-one,acme-towo")
    plugins = Plugins()
    told = "acme-towo is not installed, though LMF_PLUGINS asks for it. Did you mean 'acme-two'?"
    assert told in plugins.problems()
    with pytest.raises(UnknownName, match=re.escape(told)):
        plugins.templates["two"]


def test_lmf_trace_tells_every_load_with_its_time(site, monkeypatch, capsys):
    install(site, "acme-bad", "import acme_sdk\n")
    install(site, "acme-good")
    monkeypatch.setenv("LMF_TRACE", "1")
    Plugins(only=["acme-bad", "acme-good"])
    out, err = capsys.readouterr()
    bad, good = (line for line in err.splitlines() if line.startswith("lmf: acme"))
    assert re.fullmatch(r"lmf: acme-bad 1\.0, \d+\.\d ms, entry point main = acme_bad: ModuleNotFoundError: .*", bad)
    assert re.fullmatch(r"lmf: acme-good 1\.0, \d+\.\d ms, template: good", good)
    assert out == ""


@pytest.mark.parametrize("value", ["", "0"])
def test_nothing_is_told_without_lmf_trace(site, monkeypatch, capsys, value):
    monkeypatch.setenv("LMF_TRACE", value)
    Plugins(only=[])
    assert capsys.readouterr() == ("", "")


def test_listing_plugins_imports_no_torch():
    code = "import sys, lmf; lmf.Plugins(); print(sorted({'torch', 'transformers', 'numpy', 'peft'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr


# Names


@pytest.fixture
def contested() -> Plugins:
    plugins = Plugins(only=[])
    for package in ("two", "one"):
        plugins.register(package, module(lmf_templates=lambda: [PLAIN]))
    return plugins


def test_a_name_defined_twice_belongs_to_nobody(contested):
    assert list(contested.templates) == []
    assert len(contested.templates) == 0
    assert "plain" not in contested.templates
    for ask in (contested.templates.__getitem__, contested.templates.get):
        with pytest.raises(PluginError) as caught:
            ask("plain")
        told = "2 packages define the template 'plain': one, two. Ask for one:plain or two:plain."
        assert str(caught.value) == told
    assert "2 packages define the template 'plain': one, two" in contested.problems()


def test_a_qualified_name_is_never_contested(contested):
    assert contested.templates["one:plain"] is PLAIN
    assert "two:plain" in contested.templates
    assert list(contested.templates.all()) == [("one", PLAIN), ("two", PLAIN)]


def test_an_unknown_qualified_name_is_answered_with_qualified_names(contested):
    with pytest.raises(UnknownName) as caught:
        contested.templates["three:plain"]
    first, second = str(caught.value).splitlines()[:2]
    assert first.startswith("No template is called 'three:plain'. Did you mean '")
    assert second == "Installed: one:plain, two:plain."


def test_an_unknown_name_suggests_a_known_one():
    plugins = Plugins(only=[])
    plugins.register("mine", module(lmf_templates=lambda: [PLAIN]))
    with pytest.raises(UnknownName, match="Did you mean 'plain'"):
        plugins.templates["plane"]


def test_get_gives_the_default_for_an_unknown_name():
    plugins = Plugins(only=[])
    assert plugins.templates.get("plane") is None
    assert plugins.templates.get("plane", PLAIN) is PLAIN


def test_the_order_in_which_plugins_are_found_decides_nothing(site, monkeypatch):
    sources = {
        "acme-a": hook("return [template('same'), template('a')]"),
        "acme-b": hook("return [template('same'), template('b')]"),
        "acme-bad": "import acme_sdk\n",
        "acme-c": hook("return [template('c')]"),
        "acme-d": hook("return [template('same')]"),
        "acme-twice": hook("return [template('c'), template('c')]"),
    }
    for package, source in sources.items():
        install(site / package, package, source)
    path = list(sys.path)
    outcomes = []
    for seed in range(20):
        order = random.Random(seed).sample(sorted(sources), len(sources))
        monkeypatch.setattr(sys, "path", [str(site / package) for package in order] + path)
        plugins = Plugins(only=sources)
        with pytest.raises(PluginError) as caught:
            plugins.templates["same"]
        names = [(package, template.name) for package, template in plugins.templates.all()]
        outcomes.append((str(caught.value), rows(plugins), names, list(plugins.templates), plugins.problems()))
    told, found, names, free, _ = outcomes[0]
    assert told.startswith("3 packages define the template 'same': acme-a, acme-b, acme-d. Ask for acme-a:same or ")
    assert [row.package for row in found if row.problem] == ["acme-bad", "acme-twice"]
    assert {name for package, name in names if package.startswith("acme")} == {"a", "b", "c", "same"}
    assert {"a", "b", "c"} <= set(free)
    assert outcomes == outcomes[:1] * 20
