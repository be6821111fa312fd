"""From the names in the settings to the modules that are trained, by their paths in the model."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from lmf import ConfigError, models
from lmf.errors import did_you_mean
from torch import nn
from transformers.pytorch_utils import Conv1D

Layers = dict[str, nn.Linear | Conv1D]


def find_layers(model: nn.Module, target: Sequence[str], projections: Sequence[str], whole: Collection[str]) -> Layers:
    """Return the linear layers to update.

    Args:
        model: The base model.
        target: ``auto``, ``all-linear``, or names.
        projections: The names that ``auto`` stands for; those that this model lacks are passed over.
        whole: Paths of modules that are trained whole; nothing in them is updated.

    Raises:
        ConfigError: A name fits no layer, or the layer is one with the input embeddings.
    """
    head = ends(model)[-1]
    linear = {path: m for path, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    linear = {path: m for path, m in linear.items() if not inside(path, whole)}
    if target[0] in ("auto", "all-linear"):
        inner = [path for path in linear if path != head]
        paths = select(inner, projections) if target[0] == "auto" else inner
        unknown = [] if paths else [target[0]]
    else:
        paths = select(linear, target)
        unknown = [name for name in target if not select(linear, [name])]
    if unknown:
        known = _names(linear)
        outside = " outside --modules-to-save" if whole else ""
        raise ConfigError(
            f"--target {unknown[0]} fits no linear layer{outside}.{did_you_mean(unknown[0], known)}\n"
            f"The model has {', '.join(known)}."
        )
    if head in paths and is_tied(model):
        raise ConfigError(
            f"--target {head}: it is one matrix with the input embeddings, which an update of it would not change.\n"
            f"Train that matrix whole instead: --modules-to-save {head}."
        )
    return {path: linear[path] for path in paths}


def find_whole(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Return the modules to train whole, none inside another.

    Raises:
        ConfigError: A name fits nothing, or a list of modules.
    """
    modules = {path: module for path, module in model.named_modules() if path}
    for name in names:
        found = select(modules, [name])
        if not found:
            known = _names(modules)
            raise ConfigError(
                f"--modules-to-save {name} fits no module.{did_you_mean(name, known)}\n"
                f"The model has {', '.join(known)}."
            )
        if any(isinstance(modules[path], nn.ModuleList) for path in found):
            raise ConfigError(f"--modules-to-save {name} is a list of modules; name modules that are in it.")
    paths = select(modules, names)
    return sorted(path for path in paths if not inside(path.rpartition(".")[0], paths))


def find_rows(
    model: nn.Module, tokens: Sequence[int], layers: Collection[str], whole: Collection[str]
) -> dict[str, list[int]]:
    """Return the rows of the input embeddings and of the output head to train for new tokens.

    Args:
        model: The base model.
        tokens: Ids of the tokens.
        layers: Paths of the layers that are updated.
        whole: Paths of the modules that are trained whole, and so need no rows.

    Raises:
        ConfigError: peft cannot train single rows of this head.
    """
    if not tokens or (is_tied(model) and any(inside(path, whole) for path in ends(model))):
        return {}
    rows = {path: sorted(tokens) for path in ends(model) if not inside(path, whole)}
    for path in rows:
        if path in layers:
            problem = f"--target {path} updates all of them"
        elif getattr(model.get_submodule(path), "bias", None) is not None:
            problem = f"peft would leave out the bias of {path}"
        else:
            continue
        raise ConfigError(
            f"There are tokens that the model never learned, so their rows of {path} must be trained, "
            f"but {problem}.\nTrain it whole with --modules-to-save {path}, or do without them: another --template, or "
            "no --train-new-tokens-only."
        )
    return rows


def ends(model: Any) -> list[str]:
    """Return the paths of the input embeddings and, where there is one, of the output head."""
    return [path for end in models.ends(model) for path, module in model.named_modules() if module is end]


def is_tied(model: nn.Module) -> bool:
    """Tell whether input embeddings and output head are one matrix."""
    weights = [model.get_submodule(path).weight for path in ends(model)]
    return len(weights) == 2 and weights[0] is weights[1]


def select(paths: Iterable[str], names: Iterable[str]) -> list[str]:
    """Return the paths that are one of the names or end with one, part by part, as peft reads names."""
    names = list(names)
    return [path for path in paths if any(f".{path}".endswith(f".{name}") for name in names)]


def inside(path: str, parents: Iterable[str]) -> bool:
    """Tell whether a path is one of the parents or in one."""
    return any(f"{path}.".startswith(f"{parent}.") for parent in parents)


def _names(paths: Iterable[str]) -> list[str]:
    """Return the last parts of paths, without the numbers of layers."""
    return sorted({last for path in paths if not (last := path.rpartition(".")[2]).isdigit()})
