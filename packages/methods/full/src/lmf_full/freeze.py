"""Train some layers or modules and freeze the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lmf import ConfigError, ModelSpec, RunSettings, Tuner

if TYPE_CHECKING:
    from torch import nn

    from . import FreezeOptions


class FreezeTuner(Tuner):
    """Freezes all but the first and last decoder layers and the named modules."""

    def __init__(self, options: FreezeOptions, spec: ModelSpec):
        self.options = options
        self.path = spec.layers

    def configure(self, settings: RunSettings) -> None:
        options = self.options
        if not (options.last_layers or options.first_layers or options.modules or settings.train_new_tokens_only):
            raise ConfigError(
                "freeze trains nothing so far: give --last-layers, --first-layers, --modules or "
                "--train-new-tokens-only."
            )

    def prepare(self, model: nn.Module, new_tokens: Sequence[int] = ()) -> nn.Module:
        options = self.options
        layers = list(model.get_submodule(self.path).children())
        if options.first_layers + options.last_layers > len(layers):
            raise ConfigError(
                f"--first-layers {options.first_layers} and --last-layers {options.last_layers} are more than "
                f"the {len(layers)} decoder layers of the model."
            )
        trained = layers[: options.first_layers] + layers[len(layers) - options.last_layers :]
        for name in options.modules:
            found = [m for path, m in model.named_modules() if f".{name}." in f".{path}."]
            if not found:
                parts = sorted({p for path, _ in model.named_modules() for p in path.split(".") if not p.isdigit()})
                raise ConfigError(
                    f"--modules {name}: the model has no such module. It has {', '.join(filter(None, parts))}."
                )
            trained += found
        if new_tokens:
            from lmf.models import ends

            trained += ends(model)
        model.requires_grad_(False)
        for module in trained:
            module.requires_grad_(True)
        return model
