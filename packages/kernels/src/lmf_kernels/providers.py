"""Attention within packed documents by others: the package flash-attn, and what PyTorch has of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lmf import layers

from .tensors import on_device


def load_flash_attn() -> Callable[..., torch.Tensor]:
    """Return ``lmf.layers.attention`` as flash-attn computes it (Dao 2023, arXiv:2307.08691)."""
    from flash_attn import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]

    def compute(q: Any, k: Any, v: Any, ends: Any, most: int, scale: float | None, window: int, softcap: float) -> Any:
        seen = (window - 1, 0) if window else (-1, -1)  # how many before a token, itself left out
        options = {"softmax_scale": scale, "causal": True, "window_size": seen, "softcap": softcap}
        return flash_attn_varlen_func(q, k, v, ends, ends, most, most, **options)

    return _on_gpus(compute)


def load_torch() -> Callable[..., torch.Tensor]:
    """Return ``lmf.layers.attention`` as ``torch.nn.attention.varlen`` computes it."""
    from torch.nn.attention.varlen import varlen_attn

    def compute(q: Any, k: Any, v: Any, ends: Any, most: int, scale: float | None, window: int, softcap: float) -> Any:
        if softcap:
            raise ValueError("torch.nn.attention.varlen has no softcap.")
        seen = (window - 1, 0) if window else (-1, 0)
        options: dict[str, Any] = {"scale": scale, "window_size": seen, "enable_gqa": q.shape[1] != k.shape[1]}
        return varlen_attn(q, k, v, ends, ends, most, most, **options)

    return _on_gpus(compute)


def _on_gpus(compute: Callable[..., Any]) -> Callable[..., torch.Tensor]:
    """Return a function like ``lmf.layers.attention``, which computes elsewhere."""

    def attention(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        bounds: Sequence[int],
        *,
        scale: float | None = None,
        window: int | None = None,
        softcap: float | None = None,
    ) -> torch.Tensor:
        if not q.is_cuda:
            return layers.attention(q, k, v, bounds, scale=scale, window=window, softcap=softcap)
        longest = max(end - start for start, end in itertools.pairwise(bounds))
        return compute(q, k, v, on_device(tuple(bounds), q.device), longest, scale, window or 0, softcap or 0.0)

    return attention
