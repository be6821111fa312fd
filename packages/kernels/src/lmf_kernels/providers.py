"""Attention within packed documents, and the loss of an output head, by others than lmf."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lmf import LmfError, layers, losses
from torch.nn.attention import SDPBackend, sdpa_kernel

from .tensors import on_device


def load_flash_attn() -> Callable[..., torch.Tensor]:
    """Return ``lmf.layers.attention`` as flash-attn computes it (Dao 2023, arXiv:2307.08691)."""
    from flash_attn import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]

    def compute(q: Any, k: Any, v: Any, bounds: Sequence[int], scale: float | None, window: int, cap: float) -> Any:
        ends, most = on_device(tuple(bounds), q.device), _longest(bounds)
        seen = (window - 1, 0) if window else (-1, -1)  # how many before a token, itself left out
        options = {"softmax_scale": scale, "causal": True, "window_size": seen, "softcap": cap}
        return flash_attn_varlen_func(q, k, v, ends, ends, most, most, **options)

    return _on_gpus(compute)


def load_varlen() -> Callable[..., torch.Tensor]:
    """Return ``lmf.layers.attention`` as ``torch.nn.attention.varlen`` computes it."""
    from torch.nn.attention.varlen import varlen_attn

    def compute(q: Any, k: Any, v: Any, bounds: Sequence[int], scale: float | None, window: int, cap: float) -> Any:
        if cap:
            raise LmfError("torch.nn.attention.varlen has no softcap; choose another --attention.")
        ends, most = on_device(tuple(bounds), q.device), _longest(bounds)
        seen = (window - 1, 0) if window else (-1, 0)
        options: dict[str, Any] = {"scale": scale, "window_size": seen, "enable_gqa": q.shape[1] != k.shape[1]}
        return varlen_attn(q, k, v, ends, ends, most, most, **options)

    return _on_gpus(compute)


def load_flash() -> Callable[..., torch.Tensor]:
    """Return ``lmf.layers.attention`` as the FlashAttention-2 within PyTorch computes it."""
    return _by_backend(SDPBackend.FLASH_ATTENTION)


def load_cudnn() -> Callable[..., torch.Tensor]:
    """Return ``lmf.layers.attention`` as cuDNN computes it."""
    return _by_backend(SDPBackend.CUDNN_ATTENTION)


def load_flex() -> Callable[..., torch.Tensor]:
    """Return ``lmf.layers.attention`` as FlexAttention computes it (arXiv:2412.05496)."""
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention)

    def compute(q: Any, k: Any, v: Any, bounds: Sequence[int], scale: float | None, window: int, cap: float) -> Any:
        mask = _flex_mask(tuple(bounds), window, q.device)
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        options = {"scale": scale, "enable_gqa": q.shape[1] != k.shape[1]}
        return compiled(q, k, v, _flex_cap(cap), mask, **options)[0].transpose(0, 1)

    return _on_gpus(compute)


def load_cut_cross_entropy() -> Callable[..., torch.Tensor]:
    """Return ``lmf.losses.linear_cross_entropy`` as cut-cross-entropy computes it (arXiv:2411.09009), unfiltered.

    It has no bias, weights, scale, label smoothing or z-loss, and raises LmfError where they are wanted.
    """
    from cut_cross_entropy import linear_cross_entropy as compute  # pyright: ignore[reportMissingImports]

    @functools.wraps(losses.linear_cross_entropy)
    def linear_cross_entropy(
        hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, *, softcap: float | None = None, **more: Any
    ) -> torch.Tensor:
        if not hidden.is_cuda:
            return losses.linear_cross_entropy(hidden, weight, targets, softcap=softcap, **more)
        more.pop("chunk", None)
        lacks(more, "cut-cross-entropy")
        dtype = losses.autocast_dtype(hidden)
        options = {"softcap": softcap, "reduction": "sum", "filter_eps": None}
        return compute(hidden.to(dtype), weight.to(dtype), targets, **options)

    return linear_cross_entropy


def lacks(options: dict[str, Any], name: str) -> None:
    """Raise if one of these options of a loss says something.

    Raises:
        LmfError: The loss of that name does not have what is asked.
    """
    for option, value in options.items():
        if value is not None and (isinstance(value, torch.Tensor) or value != {"scale": 1.0}.get(option, 0.0)):
            raise LmfError(f"The kernel {name} computes a loss without {option}; leave it out of --kernels.")


def _longest(bounds: Sequence[int]) -> int:
    return max(end - start for start, end in itertools.pairwise(bounds))


def _by_backend(backend: SDPBackend) -> Callable[..., torch.Tensor]:
    """Return attention by one implementation of PyTorch's; documents of one length are computed in one call."""

    def compute(q: Any, k: Any, v: Any, bounds: Sequence[int], scale: float | None, window: int, cap: float) -> Any:
        longest = _longest(bounds)
        if cap or (window and window < longest):
            raise LmfError(
                "PyTorch's attention has no softcap and no window shorter than an example; choose another --attention."
            )
        with sdpa_kernel(backend):
            if longest * (len(bounds) - 1) != len(q):
                return layers.attention(q, k, v, bounds, scale=scale)
            q, k, v = (x.unflatten(0, (-1, longest)).transpose(1, 2) for x in (q, k, v))
            shared = q.shape[1] != k.shape[1]
            found = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=shared)
            return found.transpose(1, 2).flatten(0, 1)

    return _on_gpus(compute)


@functools.lru_cache(4)  # all layers of a model get the same
def _flex_mask(bounds: tuple[int, ...], window: int, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    lengths = on_device(bounds, device).diff()
    document = torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths)

    def visible(_: Any, __: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        seen = (document[query] == document[key]) & (query >= key)
        return seen & (query - key < window) if window else seen

    return create_block_mask(visible, None, None, len(document), len(document), str(device))


@functools.cache
def _flex_cap(cap: float) -> Callable[..., torch.Tensor] | None:
    return (lambda score, *_: cap * torch.tanh(score / cap)) if cap else None


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
        return compute(q, k, v, bounds, scale, window or 0, softcap or 0.0)

    return attention
