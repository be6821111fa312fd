"""LISA (arXiv:2403.17919): train a few layers at a time, others after every interval."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lmf import ConfigError, ModelSpec, Tuner, TuningMethod, hookimpl, option


@dataclass(frozen=True, kw_only=True, slots=True)
class LisaOptions:
    """The settings of LISA."""

    active_layers: int = option(2, "Decoder layers that are trained at a time.", min=1)
    interval: int = option(20, "Optimizer steps after which others are drawn.", min=1)
    sampler: Literal["uniform", "reshuffle", "weighted"] = option(
        "uniform", "How layers are drawn: each alike, none again before all were, or by --layer-weights."
    )
    layer_weights: Path | None = option(
        None,
        "For --sampler weighted: a JSON list, as lmf profile gradients prints it, or the output folder of a LoRA run.",
    )
    train_embeddings: bool = option(True, "Train the input embeddings, too, all the time.")
    train_head: bool = option(True, "Train the output head, too, all the time.")
    train_norm: bool = option(True, "Train the last norm, too, all the time.")
    state: Literal["reset", "park", "keep"] = option(
        "reset", "The optimizer's state of a layer that is left: dropped, kept in host memory, or kept where it is."
    )


def build(options: LisaOptions, spec: ModelSpec) -> Tuner:
    from .tuner import LisaTuner

    if (options.sampler == "weighted") != (options.layer_weights is not None):
        raise ConfigError("--sampler weighted and --layer-weights go together; give both or neither.")
    return LisaTuner(options, spec)


@hookimpl
def lmf_methods() -> list[TuningMethod]:
    return [
        TuningMethod(
            name="lisa",
            summary="Train a few layers at a time, others after every interval.",
            options=LisaOptions,
            build=build,
            parallel=("ddp", "fsdp"),
        )
    ]
