"""Hooks, registries and descriptions stay in step."""

import dataclasses
import inspect
import typing
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import lmf
import pytest
from lmf import PluginError, Plugins, hookimpl, hookspecs


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoOptions:
    """A method or an objective without options."""


HOOKS = sorted(name for name in dir(hookspecs) if name.startswith("lmf_"))
EXAMPLES: dict[str, Any] = {
    "lmf_models": lmf.ModelSpec(name="acme", template="acme"),
    "lmf_templates": lmf.Template(
        name="acme", source="here", user="{content}", assistant="", reply="{content}!", stop=("!",)
    ),
    "lmf_objectives": lmf.Objective(
        name="acme", summary="Acme.", data="text", options=NoOptions, build=lambda options: lmf.Criterion()
    ),
    "lmf_methods": lmf.TuningMethod(
        name="acme", summary="Acme.", options=NoOptions, build=lambda options, spec: lmf.Tuner()
    ),
    "lmf_optimizers": lmf.Optimizer(name="acme", summary="Acme.", build=lambda groups: None),  # type: ignore[arg-type]
    "lmf_kernels": lmf.Kernel(name="acme", summary="Acme.", why_not=lambda: None, load=lambda: "sdpa"),
    "lmf_formats": lmf.DataFormat(
        name="acme", summary="Acme.", data="text", example="{}", matches=lambda record: False, read=lambda record: ""
    ),
    "lmf_datasets": lmf.DataSet(name="acme", summary="Acme.", source="here", files=lambda: [Path("acme.json")]),
    "lmf_tasks": lmf.EvalTask(name="acme", source="here", version=1, data="acme.jsonl", asks="choices"),
    "lmf_metrics": lmf.Metric(name="acme", measure=lambda problem, outcome: 1.0),
    "lmf_commands": lmf.Command(name="acme", summary="Acme.", build=lambda: None),
}


def kinds_of(hook: str) -> tuple[type, ...]:
    """The classes that a hook's signature says it returns; nearly always one."""
    hint = typing.get_type_hints(getattr(hookspecs, hook))["return"]
    assert typing.get_origin(hint) is Iterable, f"{hook} must return an Iterable"
    (kind,) = typing.get_args(hint)
    return typing.get_args(kind) or (kind,)


def plugin(hook: str, *items: Any) -> ModuleType:
    """A plugin whose one hook returns the given items."""
    module = ModuleType("plugin")
    setattr(module, hook, hookimpl(lambda: items))
    return module


def test_every_hook_has_a_registry_and_every_registry_a_hook():
    assert sorted(Plugins(only=[]).registries) == HOOKS


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_documented_takes_nothing_and_keeps_all_results(hook):
    function = getattr(hookspecs, hook)
    assert inspect.getdoc(function)
    assert not inspect.signature(function).parameters
    options = function.lmf_spec
    assert not options["firstresult"], "the order of plugins must not decide a winner"
    assert not options["historic"]


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_returns_one_public_immutable_kind_with_a_name(hook):
    for kind in kinds_of(hook):
        assert kind.__name__ in lmf.__all__
        assert "name" in {f.name for f in dataclasses.fields(kind)}
    with pytest.raises(dataclasses.FrozenInstanceError):
        EXAMPLES[hook].name = "other"


@pytest.mark.parametrize("hook", HOOKS)
def test_what_a_hook_returns_is_found_under_its_name(hook):
    plugins = Plugins(only=[])
    plugins.register("acme-plugin", plugin(hook, EXAMPLES[hook]))
    registry = plugins.registries[hook]
    assert getattr(plugins, hook.removeprefix("lmf_")) is registry
    assert type(EXAMPLES[hook]) in kinds_of(hook)
    assert registry["acme-plugin:acme"] is EXAMPLES[hook]
    assert plugins.installed[-1].provides == {registry.kind: ["acme"]}


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_refuses_every_kind_that_is_not_its_own(hook):
    expected = " or ".join(kind.__name__ for kind in kinds_of(hook))
    for other, item in EXAMPLES.items():
        if other != hook:
            with pytest.raises(PluginError, match=f" where a {expected} was expected$"):
                Plugins(only=[]).register("acme-plugin", plugin(hook, item))


def test_each_registry_calls_its_kind_by_another_name():
    kinds = [registry.kind for registry in Plugins(only=[]).registries.values()]
    assert len(set(kinds)) == len(kinds) == len(HOOKS)
