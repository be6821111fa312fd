"""The commands of ``lmf export``; torch is imported when they run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lmf import ConfigError, LmfError, Opening, Plugins, option


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """How weights are written."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option("auto", "Precision; as they are by default.")
    shard_size: str = option("5GB", "Largest file of weights.")
    template: str = option("auto", "Another template than the model's own: a name or a Jinja file.")


def hf(model: str, out: str, weights: Weights) -> None:
    """Write MODEL as a folder that transformers, vLLM and others load: weights, tokenizer, chat template, stop ids.

    An adapter is put into the weights of its base. The folder is checked as lmf export check does.
    """
    from lmf.plan import check_opening
    from lmf.saving import check_new, check_shard_size

    check_shard_size(weights.shard_size)
    plugins = Plugins()
    check_opening(model, Opening(template=weights.template), plugins)
    check_new(Path(out))
    from .folders import write

    _tell(write(model, Path(out), plugins, weights))
    print(f"saved {out}")


def check(folder: str) -> None:
    """Prove that FOLDER loads in plain transformers, and that its chat template writes the prompts of lmf."""
    from lmf.plan import check_opening

    plugins = Plugins()
    check_opening(folder, Opening(), plugins)
    if not Path(folder).is_dir():
        raise ConfigError(f"{folder} is no folder; give the path of one.")
    from .folders import examine

    _tell(examine(Path(folder), None, plugins))


def make_delta(base: str, tuned: str, out: str) -> None:
    """Write what makes the model TUNED of the model BASE, bit for bit, and of nothing else."""
    from .deltas import make

    make(base, Path(tuned), Path(out), Plugins())
    print(f"saved {out}")


def apply_delta(base: str, delta: str, out: str) -> None:
    """Make the tuned model again of BASE and of what lmf export delta make wrote, or of a delta of LMFlow."""
    from .deltas import apply

    apply(base, Path(delta), Path(out), Plugins())
    print(f"saved {out}")


def _tell(findings: list[tuple[bool, str]]) -> None:
    """Print what was found of a folder.

    Raises:
        LmfError: Something is wrong.
    """
    for right, text in findings:
        print(f"{'ok ' if right else 'BAD'}  {text}")
    wrong = sum(not right for right, _ in findings)
    if wrong:
        raise LmfError(f"{wrong} of {len(findings)} checks failed.")
