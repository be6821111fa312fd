"""LoRA (arXiv 2106.09685) and its relatives: train low-rank updates of linear layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from lmf import Command, ConfigError, ModelSpec, Tuner, TuningMethod, hookimpl, option
from lmf.settings import WAYS


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraOptions:
    """The settings of LoRA; names follow the papers."""

    rank: int = option(16, "Rank r of the update B A.", min=1)
    alpha: float = option(32.0, "Scale: the update is multiplied by alpha / rank.", above=0)
    dropout: float = option(0.0, "Probability that an input of the update is dropped in training.", min=0, max=0.9)
    target: tuple[str, ...] = option(
        ("auto",),
        "Layers to update: auto (the family's projections), all-linear (all but the output head), or names.",
        commas=True,
    )
    rslora: bool = option(False, "Multiply by alpha / sqrt(rank) instead (arXiv 2312.03732).")
    dora: bool = option(False, "Learn the magnitude of the weights apart from their direction (arXiv 2402.09353).")
    init: Literal["default", "gaussian", "pissa", "olora"] = option(
        "default", "First values: zero updates, or a part of the base weights (arXiv 2404.02948, arXiv 2406.01775)."
    )
    lr_ratio: float = option(
        1.0, "Learning rate of B and of vectors, relative to that of A (LoRA+, arXiv 2402.12354).", above=0
    )
    bias: Literal["none", "lora_only", "all"] = option("none", "Biases to train: those of the updated layers, or all.")
    modules_to_save: tuple[str, ...] = option((), "Modules to train whole and to save too, like lm_head.", commas=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Merging:
    """How an adapter is merged."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option("auto", "Precision; as the base is stored.")
    device: Literal["auto", "cpu", "cuda"] = option("auto", "Where to compute; on a GPU if there is one.")
    shard_size: str = option("5GB", "Largest file of weights.")
    any_base: bool = option(False, "Take the base that is given, whatever the adapter says of its own.")


def build(options: LoraOptions, spec: ModelSpec) -> Tuner:
    from .tuner import LoraTuner

    if not options.target:
        raise ConfigError("--target is empty; give auto, all-linear, or the names of layers.")
    for name in ("auto", "all-linear"):
        if name in options.target and len(options.target) > 1:
            raise ConfigError(f"--target {name} stands for several layers; give it alone.")
    return LoraTuner(options, spec)


def build_merge() -> Callable[..., None]:
    def merge(base: str, adapter: str, out: str, merging: Merging) -> None:
        """Put an adapter into the weights of its BASE, as a folder that needs no adapter.

        ADAPTER is the output of a LoRA run, or any adapter of peft that changes weights.
        """
        from . import merging as module  # torch is imported here

        module.merge(base, adapter, out, merging)

    return merge


@hookimpl
def lmf_commands() -> list[Command]:
    return [Command(name="merge", summary="Put an adapter into the weights of its base.", build=build_merge)]


@hookimpl
def lmf_methods() -> list[TuningMethod]:
    return [
        TuningMethod(
            name="lora",
            summary="Train low-rank updates of linear layers and freeze the rest.",
            options=LoraOptions,
            build=build,
            learning_rate=2e-4,
            parallel=WAYS,
        )
    ]
