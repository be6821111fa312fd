"""The commands of ``lmf export``; torch is imported when they run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lmf import ConfigError, Opening, Plugins, option
from lmf.rope import FACTOR, ROPE, Rope, scaling_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """How weights are written."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option("auto", "Precision; as they are by default.")
    shard_size: str = option("5GB", "Largest file of weights.")
    template: str = option("auto", "Another template than the model's own: a name or a Jinja file.")
    rope: Rope | None = option(None, ROPE)
    rope_factor: float | None = option(None, FACTOR, above=1, max=1000)


@dataclass(frozen=True, kw_only=True, slots=True)
class Packing:
    """How a GGUF file is written."""

    type: Literal[
        "auto", "f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_1", "q5_0", "q4_k_m", "q4_k_s", "q4_1",
        "q4_0", "q3_k_l", "q3_k_m", "q3_k_s", "q2_k",
    ] = option("auto", "Precision; as the weights are by default. llama.cpp makes those below q8_0.")  # fmt: skip
    template: str = option("auto", "Another template than the model's own: a name or a Jinja file.")


def hf(model: str, out: str, weights: Weights) -> None:
    """Write MODEL as a folder that transformers, vLLM and others load: weights, tokenizer, chat template, stop ids.

    An adapter is put into the weights of its base. The folder is checked as lmf export check does.
    """
    scaling_of(weights.rope, weights.rope_factor)
    from lmf.saving import check_shard_size

    check_shard_size(weights.shard_size)
    _start(model, out, weights.template)
    from .findings import tell
    from .folders import write

    tell(write(model, Path(out), Plugins(), weights))
    print(f"saved {out}")


def gguf(model: str, out: str, packing: Packing) -> None:
    """Write MODEL as a GGUF file for llama.cpp, LM Studio and others: weights, tokenizer, chat template.

    The file is read back and compared, in llama.cpp too where that is installed.
    """
    if Path(out).suffix != ".gguf":
        raise ConfigError(f"{out} must end in .gguf; many programs know such files by their name.")
    _start(model, out, packing.template)
    from .findings import tell
    from .packing import write_file

    tell(write_file(model, Path(out), Plugins(), packing))
    print(f"saved {out}")


def ollama(model: str, out: str, packing: Packing) -> None:
    """Write MODEL as a folder for ollama create: a GGUF file, and a Modelfile with TEMPLATE and stops."""
    _start(model, out, packing.template)
    from .findings import tell
    from .packing import write_ollama

    tell(write_ollama(model, Path(out), Plugins(), packing))
    print(f"saved {out}\nnext: ollama create {Path(out).name.lower()} -f {Path(out) / 'Modelfile'}")


def check(folder: str) -> None:
    """Prove that FOLDER loads in plain transformers, and that its chat template writes the prompts of lmf."""
    from lmf.plan import check_opening

    plugins = Plugins()
    check_opening(folder, Opening(), plugins)
    if not Path(folder).is_dir():
        raise ConfigError(f"{folder} is no folder; give the path of one.")
    from .findings import tell
    from .folders import examine

    tell(examine(Path(folder), None, plugins))


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


def _start(model: str, out: str, template: str) -> None:
    """Refuse what can be refused before anything is loaded."""
    from lmf.plan import check_opening
    from lmf.saving import check_new

    check_opening(model, Opening(template=template), Plugins())
    check_new(Path(out))
