"""``attn_implementation="lmf"``, for models of transformers in loops that are not lmf's.

Shapes: B rows of T positions, H heads of queries and K of keys and values, L positions of keys, D the size of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from lmf import layers
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask

from .attention import attention

NAME = "lmf"


def register() -> str:
    """Make the implementation known to transformers, and return its name.

    A mask of padding goes with it: a name without one gets none, and padding would be attended to.
    """
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, flash_attention_mask)
    return NAME


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    is_causal: bool | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as transformers asks for it; what padding gets is 0.

    Args:
        module: The attention layer.
        query: (B, H, T, D)
        key: (B, K, L, D); L is more than T where there is a cache, and then plain PyTorch computes.
        value: The same.
        attention_mask: (B, L), False where there is padding; None if there is none.
        scaling: Factor of the scores; 1 / sqrt(D) by default.
        dropout: Must be 0.
        sliding_window: Number of positions, itself included, that a token sees.
        softcap: Bound of the scores.
        s_aux: Sinks; must be None.
        is_causal: Whether a token sees none of those after it; must be so.
        cu_seq_lens_q: Bounds of documents that lie end to end in one row; int32, (documents + 1,).

    Returns:
        (B, T, H, D), and no weights.

    Raises:
        ValueError: The kernel does not compute what is asked.
    """
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    for asked, what in (
        (dropout, "dropout"),
        (s_aux is not None, "sinks"),
        (not causal, "attention that is not causal"),
    ):
        if asked:
            raise ValueError(f"The attention of lmf has no {what}; load the model with another attn_implementation.")
    options: dict[str, Any] = {"scale": scaling, "window": sliding_window, "softcap": softcap}
    rows, count = query.shape[0], query.shape[2]
    if count != key.shape[2]:
        return _after_others(query, key, value, attention_mask, options), None
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    if attention_mask is None:
        bounds = tuple(range(0, rows * count + 1, count)) if cu_seq_lens_q is None else cu_seq_lens_q
        return attention(q, k, v, bounds, **options).unflatten(0, (rows, count)), None
    there = attention_mask.bool()
    place = there.flatten().nonzero().squeeze(1)
    bounds = torch.cat([there.new_zeros(1, dtype=torch.int32), there.sum(1).cumsum(0, dtype=torch.int32)])
    found = attention(q[place], k[place], v[place], bounds, **options)
    return torch.zeros_like(q).index_copy(0, place, found).unflatten(0, (rows, count)), None


def _after_others(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, options: dict[str, Any]
) -> torch.Tensor:
    """Attend from the last positions to all, row by row; (B, T, H, D)."""
    count, length = query.shape[2], key.shape[2]
    there = torch.ones(len(query), length, dtype=torch.bool, device=key.device) if mask is None else mask.bool()
    if count > 1 and not there[:, -count:].all():
        raise ValueError("The attention of lmf reads several tokens after others without padding among them only.")
    found = []
    for q, k, v, own in zip(query, key, value, there, strict=True):
        seen = -(options["window"] + count - 1) if options["window"] else 0  # what no query sees is left out
        k, v = (x[:, own][:, seen:][None] for x in (k, v))
        found.append(layers.attend(q[None], k, v, options["scale"], 0.0, options["window"], options["softcap"]))
    return torch.cat(found).transpose(1, 2)
