"""Full fine-tuning, and freezing all but some layers."""

from __future__ import annotations

from dataclasses import dataclass

from lmf import ModelSpec, Tuner, TuningMethod, hookimpl, option
from lmf.settings import WAYS


@dataclass(frozen=True, kw_only=True, slots=True)
class FullOptions:
    """Full fine-tuning has no settings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FreezeOptions:
    """Which parts are trained; the rest is frozen."""

    last_layers: int = option(0, "Train this many decoder layers from the top.", min=0)
    first_layers: int = option(0, "Train this many decoder layers from the bottom.", min=0)
    modules: tuple[str, ...] = option(
        (), "Train modules whose dotted name has this part, like mlp,lm_head.", commas=True
    )


def build_freeze(options: FreezeOptions, spec: ModelSpec) -> Tuner:
    from .freeze import FreezeTuner

    return FreezeTuner(options, spec)


@hookimpl
def lmf_methods() -> list[TuningMethod]:
    return [
        TuningMethod(
            name="full",
            summary="Train every parameter.",
            options=FullOptions,
            build=lambda options, spec: Tuner(),
            parallel=WAYS,
        ),
        TuningMethod(
            name="freeze",
            summary="Train some layers or modules and freeze the rest.",
            options=FreezeOptions,
            build=build_freeze,
            parallel=WAYS,
        ),
    ]
