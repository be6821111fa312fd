"""How llama.cpp computes the families of models that it and transformers both know: settings, and order of weights.

Sources: ``src/models`` and ``conversion`` of llama.cpp, the names of ``gguf``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFWriter, RopeScalingType
from lmf import LmfError
from lmf.rope import positions as positions_of
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

Describe = Callable[[GGUFWriter, Any], None]
Change = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Architecture:
    """A family of models in llama.cpp.

    Attributes:
        kind: Its name there.
        activation: The activation function that is computed there.
        layers: Kinds of attention that are repeated there; a window elsewhere is not kept.
        paired: The rotation turns pairs of neighbours, so the rows of queries and keys stand in another order.
        centered: Norms multiply by their weights, while transformers adds 1 to those of its own.
        describe: Tells the settings that only this family has.
    """

    kind: MODEL_ARCH
    activation: str = "silu"
    layers: tuple[str, ...] = ("full_attention",)
    paired: bool = False
    centered: bool = False
    describe: Describe = lambda writer, config: None

    @property
    def name(self) -> str:
        """Its name in the file."""
        return MODEL_ARCH_NAMES[self.kind]

    def change(self, name: str, config: Any) -> tuple[Change, Change]:
        """Return what makes of a tensor of transformers that of the file, and the way back."""
        heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
        if self.paired and (".q_proj." in name or ".k_proj." in name):
            return lambda tensor: _neighbours(tensor, heads), lambda tensor: _halves(tensor, heads)
        if self.centered and name.endswith("norm.weight"):
            return lambda tensor: tensor.float() + 1, lambda tensor: tensor.float() - 1
        return lambda tensor: tensor, lambda tensor: tensor


def _gemma2(writer: GGUFWriter, config: Any) -> None:
    writer.add_sliding_window(config.sliding_window)
    writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _gemma3(writer: GGUFWriter, config: Any) -> None:
    if config.attn_logit_softcapping:
        raise LmfError("llama.cpp caps no attention of Gemma 3, and this model does (attn_logit_softcapping).")
    writer.add_sliding_window(config.sliding_window)
    writer.add_rope_freq_base_swa(config.rope_parameters["sliding_attention"]["rope_theta"])
    if config.final_logit_softcapping:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _phi3(writer: GGUFWriter, config: Any) -> None:
    writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
    if config.sliding_window:
        writer.add_sliding_window(config.sliding_window)


LLAMA = Architecture(MODEL_ARCH.LLAMA, paired=True)
GELU = "gelu_pytorch_tanh"
ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": Architecture(MODEL_ARCH.QWEN2),
    "qwen3": Architecture(MODEL_ARCH.QWEN3),
    "phi3": Architecture(MODEL_ARCH.PHI3, describe=_phi3),
    "gemma": Architecture(MODEL_ARCH.GEMMA, GELU, centered=True),
    "gemma2": Architecture(
        MODEL_ARCH.GEMMA2, GELU, ("sliding_attention", "full_attention"), centered=True, describe=_gemma2
    ),
    "gemma3_text": Architecture(
        MODEL_ARCH.GEMMA3, GELU, ("sliding_attention",) * 5 + ("full_attention",), centered=True, describe=_gemma3
    ),
}
"""By the ``model_type`` of transformers."""


def architecture_of(config: Any) -> Architecture:
    """Return how llama.cpp computes a model.

    Raises:
        LmfError: It computes none such, or not so.
    """
    found = ARCHITECTURES.get(config.model_type)
    if found is None:
        raise LmfError(
            f"lmf writes GGUF for {', '.join(ARCHITECTURES)}, and this model is of type {config.model_type!r}."
        )
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    if activation != found.activation and not (found.activation == GELU and activation == "gelu"):
        raise LmfError(f"llama.cpp computes {found.activation!r} in {found.name}, and this model {activation!r}.")
    if getattr(config, "use_bidirectional_attention", None):
        raise LmfError("llama.cpp lets no text model attend to what follows, and this one does.")
    if len(found.layers) > 1:
        repeated = [found.layers[i % len(found.layers)] for i in range(config.num_hidden_layers)]
        if list(config.layer_types) != repeated:
            raise LmfError(
                f"llama.cpp has {found.name} with the layers {', '.join(found.layers)}, repeated; this differs."
            )
    scaled = getattr(config, "query_pre_attn_scalar", None)
    large = config.num_hidden_layers in (46, 62)  # by that llama.cpp knows the models of 27B
    usual = config.hidden_size // config.num_attention_heads if large else head_size(config)
    if scaled is not None and scaled != usual:
        raise LmfError(f"llama.cpp divides attention by the root of {usual}, and this model by that of {scaled}.")
    return found


def head_size(config: Any) -> int:
    """Return the width of a head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def describe(writer: GGUFWriter, architecture: Architecture, config: Any) -> None:
    """Write the settings of a model.

    Raises:
        LmfError: llama.cpp does not scale positions so.
    """
    writer.add_context_length(positions_of(config) or config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_size(config))
    writer.add_value_length(head_size(config))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    positions = _positions(config)
    writer.add_rope_dimension_count(int(head_size(config) * positions.get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(positions["rope_theta"])
    kind = positions["rope_type"]
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType(kind))
        writer.add_rope_scaling_factor(positions["factor"])
    if kind == "yarn":
        odd = sorted(positions.keys() & {"beta_fast", "beta_slow", "attention_factor", "mscale", "truncate"})
        if odd:
            raise LmfError(f"lmf writes YaRN with its usual settings only, and this model sets {', '.join(odd)}.")
        writer.add_rope_scaling_orig_ctx_len(positions["original_max_position_embeddings"])
    if kind == "longrope":
        writer.add_rope_scaling_attn_factors(ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))[1])
    architecture.describe(writer, config)


def rotations(architecture: Architecture, config: Any) -> dict[str, torch.Tensor]:
    """Return the tensors that hold how positions are scaled, if they are by a table.

    Raises:
        LmfError: llama.cpp does not scale positions so.
    """
    positions = _positions(config)
    kind = positions["rope_type"]
    if kind == "llama3" and architecture.paired:
        size = head_size(config)
        usual = positions["rope_theta"] ** -(torch.arange(0, size, 2, dtype=torch.float32) / size)
        scaled, _ = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
        return {"rope_freqs.weight": usual / scaled}
    if kind == "longrope" and architecture.kind == MODEL_ARCH.PHI3:
        return {f"rope_factors_{size}.weight": torch.tensor(positions[f"{size}_factor"]) for size in ("long", "short")}
    if kind not in ("default", "linear", "yarn"):
        raise LmfError(f"llama.cpp scales no positions of {architecture.name} by {kind!r}, as this model does.")
    return {}


def notes(architecture: Architecture, config: Any) -> list[str]:
    """Return where llama.cpp computes otherwise than the model was trained, for texts that are long enough."""
    found = []
    window = getattr(config, "sliding_window", None)
    if window and len(architecture.layers) == 1 and window < config.max_position_embeddings:
        found.append(f"llama.cpp knows no window here: beyond {window:,} tokens it attends to more than in training")
    if _positions(config)["rope_type"] == "longrope":
        before = config.original_max_position_embeddings
        found.append(
            f"with a context above {before:,} tokens llama.cpp reads short texts, too, as transformers long ones"
        )
    return found


def _positions(config: Any) -> Mapping[str, Any]:
    """Return how positions are turned, in the layers that see everything."""
    return config.rope_parameters.get("full_attention", config.rope_parameters)


def _neighbours(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Put the two halves of each head next to each other. Shape: (heads x size, ...)."""
    return tensor.view(heads, 2, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def _halves(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Undo ``_neighbours``."""
    return tensor.view(heads, -1, 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)
