"""``attn_implementation="lmf"``, for models of transformers in loops that are not lmf's.

Shapes: B rows of T positions, H heads of queries and K of keys and values, L positions of keys, D the size of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lmf import layers
from lmf.losses import autocast_dtype
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask

from .attention import attention

NAME = "lmf"
_kept = WeakTensorKeyDictionary()  # bounds by masks and positions


def register() -> str:
    """Make the implementation known to transformers, and return its name.

    A mask of padding goes with it: a name without one gets none, and padding would be attended to.
    """
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, mask)
    return NAME


def mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | torch.Tensor = 0,
    kv_offset: int | torch.Tensor = 0,
    attention_mask: torch.Tensor | None = None,
    device: torch.device | None = None,
    **more: Any,
) -> torch.Tensor | None:
    """Return what ``attend`` needs to know: (B, at most L), False where there is padding, or None if there is none.

    It is shorter than L where a cache has room that nothing was written to yet.

    Args:
        batch_size: B.
        q_length: T.
        kv_length: L.
        q_offset: How many tokens came before.
        kv_offset: How many of these the cache has not any more.
        attention_mask: (B, tokens so far), of the user.
        device: Where the mask is to be.
        more: What the masks of others need.
    """
    given = {"q_offset": q_offset, "kv_offset": kv_offset, "attention_mask": attention_mask}
    found = flash_attention_mask(batch_size, q_length, kv_length, **given, **more)
    written = int(q_offset) + q_length - int(kv_offset)
    if written >= kv_length:
        return found
    return torch.ones(batch_size, written, dtype=torch.bool, device=device) if found is None else found[:, :written]


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
    position_ids: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as transformers asks for it; what padding gets is 0. Under autocast it computes in that precision.

    Args:
        module: The attention layer.
        query: (B, H, T, D)
        key: (B, K, L, D); L is more than T where there is a cache, and then plain PyTorch computes.
        value: The same.
        attention_mask: What ``mask`` returned.
        scaling: Factor of the scores; 1 / sqrt(D) by default.
        dropout: Must be 0.
        sliding_window: Number of positions, itself included, that a token sees.
        softcap: Bound of the scores.
        s_aux: Sinks; must be None.
        is_causal: Whether a token sees none of those after it; must be so.
        cu_seq_lens_q: Bounds of documents that lie end to end in one row; int32, (documents + 1,).
        position_ids: (B or 1, T); without a mask and bounds, a document begins where they do not go on by one.

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
        (attention_mask is not None and attention_mask.dim() != 2, "masks but of (rows, tokens)"),
    ):
        if asked:
            raise ValueError(f"The attention of lmf has no {what}; load the model with another attn_implementation.")
    options: dict[str, Any] = {"scale": scaling, "window": sliding_window, "softcap": softcap}
    query, key, value = (x.to(autocast_dtype(value)) for x in (query, key, value))
    if attention_mask is not None:
        key, value = (x[:, :, : attention_mask.shape[1]] for x in (key, value))
    rows, count = query.shape[0], query.shape[2]
    if count != key.shape[2]:
        return _after_others(query, key, value, attention_mask, options), None
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    if attention_mask is not None:
        place, bounds = _kept_for(attention_mask, _unpadded)
        found = attention(q[place], k[place], v[place], bounds, **options)
        return torch.zeros_like(q).index_copy(0, place, found).unflatten(0, (rows, count)), None
    bounds = cu_seq_lens_q
    if bounds is None:
        one_each = position_ids is None
        bounds = tuple(range(0, rows * count + 1, count)) if one_each else _kept_for(position_ids, _documents, rows)
    return attention(q, k, v, bounds, **options).unflatten(0, (rows, count)), None


def _kept_for(tensor: torch.Tensor, make: Callable[..., Any], *more: Any) -> Any:
    """Return what is made of a tensor, once for all layers: to look into it waits for the GPU."""
    if tensor not in _kept:
        _kept[tensor] = make(tensor, *more)
    return _kept[tensor]


def _unpadded(mask: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Return where there is no padding in the flattened rows, and the bounds of what is there."""
    there = mask.bool()
    return there.flatten().nonzero().squeeze(1), (0, *there.sum(1).cumsum(0).tolist())


def _documents(position_ids: torch.Tensor, rows: int) -> tuple[int, ...]:
    """Return the bounds of documents in rows that lie end to end: each begins where positions do not go on by one."""
    begins = position_ids.diff(dim=1, prepend=position_ids[:, :1]) != 1
    begins[:, 0] = True
    begins = begins.expand(rows, -1).flatten()
    return (*begins.nonzero().squeeze(1).tolist(), len(begins))


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
