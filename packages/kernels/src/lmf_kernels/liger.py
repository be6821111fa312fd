"""The parts of models by Liger-Kernel (arXiv:2410.10989), where it is installed; their definitions elsewhere."""

from __future__ import annotations

from typing import Any

import torch
from liger_kernel.ops import (  # pyright: ignore[reportMissingImports]
    LigerFusedLinearCrossEntropyFunction,
    LigerGELUMulFunction,
    LigerRMSNormFunction,
    LigerRopeFunction,
    LigerSiLUMulFunction,
)
from lmf import LmfError, layers, losses

from .providers import lacks


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, *, offset: bool = False) -> torch.Tensor:
    """See ``lmf.layers.rms_norm``."""
    if not x.is_cuda:
        return layers.rms_norm(x, weight, eps, offset=offset)
    casting = "gemma" if offset else "llama"  # where it goes to float32
    in_place = False  # else it writes over the gradient that it gets
    return LigerRMSNormFunction.apply(x, weight, eps, float(offset), casting, in_place)


def glu(gate: torch.Tensor, up: torch.Tensor, activation: str) -> torch.Tensor:
    """See ``lmf.layers.glu``."""
    if not gate.is_cuda:
        return layers.glu(gate, up, activation)
    return (LigerSiLUMulFunction if activation == "silu" else LigerGELUMulFunction).apply(gate, up)


def rotary(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """See ``lmf.layers.rotary``; q and k are turned in place, for they are nothing else's in a model.

    Raises:
        LmfError: The heads come after the positions, which Liger does not take.
    """
    if not q.is_cuda:
        return layers.rotary(q, k, cos, sin, unsqueeze_dim)
    if unsqueeze_dim != 1:
        raise LmfError("The kernel liger-rotary takes heads before positions only; leave it out of --kernels.")
    return LigerRopeFunction.apply(q, k, cos, sin)


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    softcap: float | None = None,
    smoothing: float = 0.0,
    z_loss: float = 0.0,
    **more: Any,
) -> torch.Tensor:
    """See ``lmf.losses.linear_cross_entropy``.

    Raises:
        LmfError: Predictions have weights, or logits a scale.
    """
    if not hidden.is_cuda:
        options = {"bias": bias, "softcap": softcap, "smoothing": smoothing, "z_loss": z_loss}
        return losses.linear_cross_entropy(hidden, weight, targets, **options, **more)
    more.pop("chunk", None)
    lacks(more, "liger-cross-entropy")
    dtype = losses.autocast_dtype(hidden)
    hidden, weight = hidden.to(dtype), weight.to(dtype)
    bias = None if bias is None else bias.to(dtype)
    given = (hidden, weight, targets, bias, None, -100, z_loss, smoothing, "sum", softcap)
    return LigerFusedLinearCrossEntropyFunction.apply(*given)[0]
