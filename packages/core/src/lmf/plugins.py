"""Finds the installed plugins and what they provide.

Loading never fails: a plugin that cannot be used is recorded with the reason, and the
reason is shown when somebody asks for something that is missing.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import Distribution, EntryPoint, distributions
from types import UnionType
from typing import Any, Generic, TypeVar, get_args

import pluggy

from . import hookspecs
from .errors import PluginError, UnknownName, did_you_mean
from .evaluate.task import EvalTask, Metric
from .specs import (
    Command,
    DataFormat,
    DataSet,
    Kernel,
    ModelSpec,
    Objective,
    Optimizer,
    TuningMethod,
)
from .templates.jinja import AnyTemplate

API_VERSION = 1
GROUP = f"lmf.v{API_VERSION}"

T = TypeVar("T", bound=Any)


class Registry(Mapping[str, T], Generic[T]):
    """The things of one kind, by name.

    A name that two packages define belongs to neither; ``package:name`` always works.
    """

    def __init__(self, kind: str, spec: type[T] | UnionType):
        self.kind = kind
        self.hints: list[str] = []
        self._spec = spec
        self._items: dict[str, dict[str, T]] = {}  # name -> package -> item

    def __getitem__(self, name: str) -> T:
        package, _, bare = name.rpartition(":")
        found = self._items.get(bare, {})
        if package in found:
            return found[package]
        if package or not found:
            known = [each for name in self._items for each in self._qualified(name)] if package else self._items
            raise UnknownName(self.kind, name, known, self.hints)
        if len(found) > 1:
            raise PluginError(f"{self._conflict(name)}. Ask for {' or '.join(self._qualified(name))}.")
        return next(iter(found.values()))

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(name for name, items in self._items.items() if len(items) == 1))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        package, _, bare = str(name).rpartition(":")
        found = self._items.get(bare, {})
        return package in found if package else len(found) == 1

    def get(self, name: str, default: Any = None) -> Any:
        """Return what ``self[name]`` is, or ``default`` if nothing has that name."""
        try:
            return self[name]
        except UnknownName:
            return default

    def all(self) -> Iterator[tuple[str, T]]:
        """Yield (package, item) of everything, also of what shares its name."""
        for name in sorted(self._items):
            yield from sorted(self._items[name].items(), key=lambda pair: pair[0])

    def qualified(self, item: T) -> str:
        """Return ``package:name``, the name of ``item`` that can never be ambiguous."""
        package = next(package for package, each in self._items[item.name].items() if each is item)
        return f"{package}:{item.name}"

    def conflicts(self) -> list[str]:
        """Return one sentence for each name that several packages define."""
        return [self._conflict(name) for name, items in sorted(self._items.items()) if len(items) > 1]

    def check(self, item: Any, package: str) -> None:
        """Raise PluginError if ``item`` cannot be added."""
        if not isinstance(item, self._spec):
            kinds: tuple[Any, ...] = get_args(self._spec) or (self._spec,)
            names = " or ".join(each.__name__ for each in kinds)
            raise PluginError(f"returned {_short(item)} where a {names} was expected")
        if not (isinstance(item.name, str) and re.fullmatch(r"[a-z0-9][a-z0-9._-]*", item.name)):
            raise PluginError(f"the {self.kind} name {item.name!r} must be lower-case letters, digits, '.', '_' or '-'")
        if package in self._items.get(item.name, {}):
            raise PluginError(f"defines the {self.kind} {item.name!r} twice")

    def add(self, item: T, package: str) -> None:
        """Add ``item`` as something that ``package`` provides."""
        self.check(item, package)
        self._items.setdefault(item.name, {})[package] = item

    def _qualified(self, name: str) -> list[str]:
        return [f"{package}:{name}" for package in sorted(self._items[name])]

    def _conflict(self, name: str) -> str:
        packages = sorted(self._items[name])
        return f"{len(packages)} packages define the {self.kind} {name!r}: {', '.join(packages)}"


@dataclass(slots=True)
class Plugin:
    """An installed plugin, as ``lmf plugins`` shows it.

    Attributes:
        package: The distribution it comes in, for example ``lmf-lora``.
        version: The version of that distribution.
        problem: Why it cannot be used, or None.
        provides: Names by kind.
    """

    package: str
    version: str
    problem: str | None = None
    provides: dict[str, list[str]] = field(default_factory=dict)


class Plugins:
    """Every installed plugin and everything they provide.

    Args:
        only: The packages to load; by default all of them, or those in the environment
            variable ``LMF_PLUGINS``. Those in ``LMF_DISABLE_PLUGINS`` are left out. Both
            are separated by commas, and ``lmf-core`` itself is loaded in any case. With
            ``LMF_TRACE=1`` every load is told on stderr.
    """

    def __init__(self, only: Iterable[str] | None = None):
        self.models = Registry("model family", ModelSpec)
        self.templates = Registry("template", AnyTemplate)
        self.objectives = Registry("objective", Objective)
        self.methods = Registry("tuning method", TuningMethod)
        self.optimizers = Registry("optimizer", Optimizer)
        self.kernels = Registry("kernel", Kernel)
        self.formats = Registry("data format", DataFormat)
        self.datasets = Registry("data set", DataSet)
        self.tasks = Registry("eval task", EvalTask)
        self.metrics = Registry("metric", Metric)
        self.commands = Registry("command", Command)
        self.installed: list[Plugin] = []
        self.registries: dict[str, Registry[Any]] = {
            f"lmf_{name}": value for name, value in vars(self).items() if isinstance(value, Registry)
        }
        self._manager = pluggy.PluginManager("lmf")
        self._manager.add_hookspecs(hookspecs)
        wanted = _names("LMF_PLUGINS") if only is None else {_canonical(name) for name in only}
        disabled = _names("LMF_DISABLE_PLUGINS") or set()
        found = _find()
        for plugin, entry in found:
            name = plugin.package
            if name == "lmf-core" or (name not in disabled and (wanted is None or name in wanted)):
                self._load(plugin, entry)
        packages = {plugin.package for plugin, _ in found}
        left_out = sorted(packages - {plugin.package for plugin in self.installed})
        if left_out and only is None:
            for registry in self.registries.values():
                registry.hints.append(f"Left out by LMF_PLUGINS or LMF_DISABLE_PLUGINS: {', '.join(left_out)}.")
        for name in sorted((wanted or set()) - packages - {"lmf-core"}):
            who = "LMF_PLUGINS asks" if only is None else "it was asked"
            problem = f"not installed, though {who} for it.{did_you_mean(name, packages)}"
            self._add(Plugin(name, "-", problem))

    def register(self, package: str, module: Any, version: str = "-") -> None:
        """Add a plugin that is not installed, for example in a test.

        Raises:
            PluginError: The module breaks the contract.
        """
        plugin = Plugin(package, version)
        self._collect(plugin, package, lambda: module)
        self.installed.append(plugin)

    def problems(self) -> list[str]:
        """Return what ``lmf plugins check`` complains about: broken plugins and contested names."""
        broken = [_complaint(plugin) for plugin in self.installed if plugin.problem]
        return broken + [text for registry in self.registries.values() for text in registry.conflicts()]

    def _load(self, plugin: Plugin, entry: EntryPoint | None) -> None:
        start = time.perf_counter()
        if entry:
            try:
                if entry.group != GROUP:
                    raise PluginError(_other_api(plugin.package, entry.group))
                self._collect(plugin, f"{plugin.package}/{entry.name}", entry.load)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # also SystemExit, and the panics of modules written in Rust
                plugin.problem = f"entry point {entry.name} = {entry.value}: {_cause(error)}"
        if os.environ.get("LMF_TRACE", "0") not in ("", "0"):
            outcome = plugin.problem or "; ".join(f"{k}: {', '.join(v)}" for k, v in plugin.provides.items())
            ms = (time.perf_counter() - start) * 1000
            print(f"lmf: {plugin.package} {plugin.version}, {ms:.1f} ms, {outcome}", file=sys.stderr)
        self._add(plugin)

    def _add(self, plugin: Plugin) -> None:
        self.installed.append(plugin)
        if plugin.problem:
            for registry in self.registries.values():
                registry.hints.append(_complaint(plugin))

    def _collect(self, plugin: Plugin, name: str, load: Callable[[], Any]) -> None:
        """Load a plugin and add what it provides, all of it or nothing."""
        module = load()
        if self._manager.has_plugin(name) or self._manager.is_registered(module):
            raise PluginError(f"is loaded already, as {self._manager.get_name(module) or name}")
        try:
            self._manager.register(module, name)
            found = self._call_hooks(module)
            seen = set()
            for registry, item in found:
                registry.check(item, plugin.package)
                if (registry.kind, item.name) in seen:
                    raise PluginError(f"defines the {registry.kind} {item.name!r} twice")
                seen.add((registry.kind, item.name))
        except BaseException as error:
            if self._manager.has_plugin(name):
                self._manager.unregister(name=name)
            if isinstance(error, pluggy.PluginValidationError):
                raise PluginError(str(error)) from error
            raise
        for registry, item in found:
            registry.add(item, plugin.package)
            plugin.provides.setdefault(registry.kind, []).append(item.name)

    def _call_hooks(self, module: Any) -> list[tuple[Registry[Any], Any]]:
        """Call every hook that a module implements; return what each gave, with its registry."""
        found = []
        callers = {caller.name: caller for caller in self._manager.get_hookcallers(module) or ()}
        for hook, caller in callers.items():
            for impl in caller.get_hookimpls():
                if impl.plugin is module and hook in self.registries:
                    found += [(self.registries[hook], item) for item in _call(impl.function, hook)]
                elif impl.plugin is module and not impl.optionalhook:
                    raise PluginError(f"there is no hook {hook!r}.{did_you_mean(hook, self.registries)}")
        for hook in self.registries:
            if hook not in callers and callable(getattr(module, hook, None)):
                raise PluginError(f"the function {hook} lacks the decorator @lmf.hookimpl")
        if not callers:
            raise PluginError("defines no hook of lmf.hookspecs")
        return found


def _call(function: Callable[[], Any], hook: str) -> list[Any]:
    items = function()
    if isinstance(items, str | Mapping) or not isinstance(items, Iterable):
        raise PluginError(f"{hook} returned {_short(items)}; it must return a list of descriptions")
    return list(items)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _other_api(package: str, group: str) -> str:
    older = int(group.removeprefix("lmf.v")) < API_VERSION
    return f"speaks the hook API {group}, but this lmf-core {GROUP}; upgrade {package if older else 'lmf-core'}"


def _cause(error: BaseException) -> str:
    """Say in one line what went wrong."""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = "its message cannot be shown"
    return text if isinstance(error, PluginError) else f"{type(error).__name__}: {text}".removesuffix(": ")


def _complaint(plugin: Plugin) -> str:
    if plugin.version == "-":
        return f"{plugin.package} is {plugin.problem}"
    return f"{plugin.package} {plugin.version} is installed but unusable: {plugin.problem}"


def _names(variable: str) -> set[str] | None:
    """Read a set of package names from the environment; None if the variable is not set."""
    value = os.environ.get(variable)
    return None if value is None else {_canonical(name) for name in value.split(",") if name.strip()}


def _canonical(package: str) -> str:
    """Return the one spelling of a distribution's name, as package indexes do."""
    return re.sub(r"[-_.]+", "-", package.strip()).lower()


def _find() -> list[tuple[Plugin, EntryPoint | None]]:
    """Find the entry points of every group ``lmf.vN``, in an order that only names decide.

    Returns:
        A row for each and the entry point to load; None where the row has a problem already.
    """
    found: dict[str, list[tuple[Plugin, EntryPoint | None]]] = {}
    damaged: list[Plugin] = []
    for distribution in distributions():
        name = version = "?"
        try:
            if not re.search(r"^\[lmf\.v\d+\]", distribution.read_text("entry_points.txt") or "", re.M):
                continue
            if not distribution.name:
                raise PluginError("it has no METADATA")
            name, version = _canonical(distribution.name), distribution.version or "?"
            if name not in found:  # of two installations, the first on sys.path counts
                found[name] = [(Plugin(name, version), entry) for entry in _entry_points(distribution)]
        except Exception as error:
            folder = distribution.locate_file("")
            damaged.append(Plugin(name, version, f"its installation in {folder} is damaged: {_cause(error)}"))
    rows = [row for name in sorted(found) for row in found[name]]
    return [*rows, *((plugin, None) for plugin in damaged)]


def _entry_points(distribution: Distribution) -> list[EntryPoint]:
    """Return the entry points of this hook API; without any, those of others, to be reported."""
    entries = [entry for entry in distribution.entry_points if re.fullmatch(r"lmf\.v\d+", entry.group)]
    entries.sort(key=lambda entry: (entry.group, entry.name, entry.value))
    return [entry for entry in entries if entry.group == GROUP] or entries
