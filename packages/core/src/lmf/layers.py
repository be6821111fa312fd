"""Parts of a decoder that keep less for the backward pass and write fewer tensors than their usual code.

Each gives what that code gives, in plain torch on any device. Shapes: d is the width of what is normalized,
B the rows, H heads, N positions, D the size of a head.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, *, offset: bool = False) -> torch.Tensor:
    """Return ``weight * x / sqrt(mean(x ** 2) + eps)``, computed in float32 (Zhang and Sennrich 2019).

    Kept are x, which the residual connection has anyway, and one number a row.

    Args:
        x: (..., d)
        weight: (d,)
        eps: Added to the mean square.
        offset: Multiply by ``1 + weight`` before the result is rounded to the precision of x, as Gemma does. By
            default the normalized x is rounded and then multiplied, as Llama does.
    """
    return _RMSNorm.apply(x, weight, eps, offset)  # pyright: ignore


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, *, offset: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``rms_norm(residual + x, weight, eps, offset=offset)``, and the sum.

    Args:
        x: What a sublayer adds; (..., d).
        residual: What it adds to, in the same shape.
        weight: See ``rms_norm``.
        eps: See ``rms_norm``.
        offset: See ``rms_norm``.
    """
    total = residual + x
    return rms_norm(total, weight, eps, offset=offset), total


def glu(gate: torch.Tensor, up: torch.Tensor, activation: str) -> torch.Tensor:
    """Return ``activation(gate) * up`` (Shazeer 2020). Kept are only the two arguments.

    Args:
        gate: Any shape.
        up: The same shape.
        activation: ``silu``, or ``gelu`` by its approximation with tanh.
    """
    return _GLU.apply(gate, up, activation)  # pyright: ignore


def rotary(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return q and k turned by the angles of their positions (Su et al. 2021), in halves as Llama lays them out.

    Args:
        q: (B, H, N, D), or (B, N, H, D) with ``unsqueeze_dim`` 2.
        k: The same with its own number of heads.
        cos: (B, N, D); less than D if only the first part of each head is turned.
        sin: The same.
        unsqueeze_dim: Where cos and sin get the dimension of the heads.
    """
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return _Rotary.apply(q, cos, sin), _Rotary.apply(k, cos, sin)  # pyright: ignore


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
    """Return causal attention inside each of several documents that lie end to end; (N, H, D).

    Args:
        q: (N, H, D)
        k: (N, K, D), where K divides H: so many heads share each of its heads.
        v: The same as k.
        bounds: Where the documents start and end: 0, the end of the first, ..., N.
        scale: Factor of the scores; 1 / sqrt(D) by default.
        window: Number of positions, itself included, that a token sees; all by default.
        softcap: Bound of the scores: softcap * tanh(score / softcap).
    """
    lengths = [end - start for start, end in itertools.pairwise(bounds)]
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    parts = zip(*(x.split(lengths, dim=2) for x in (q, k, v)), strict=True)
    return torch.cat([attend(q, k, v, scale, 0.0, window, softcap)[0].transpose(0, 1) for q, k, v in parts])


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scaling: float | None,
    dropout: float,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """Attend from the last positions, (1, heads, n, head size), to all of them."""
    count, length = q.shape[2], k.shape[2]
    plain = count in (1, length) and (window is None or window >= length)
    if softcap is None and plain:
        causal = count > 1
        return F.scaled_dot_product_attention(q, k, v, None, dropout, causal, scale=scaling, enable_gqa=True)
    ones = torch.ones(count, length, dtype=torch.bool, device=q.device)
    seen = ones.tril(length - count)
    if window is not None:
        seen &= ones.triu(length - count + 1 - window)
    if softcap is None:
        return F.scaled_dot_product_attention(q, k, v, seen, dropout, scale=scaling, enable_gqa=True)
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = q @ k.transpose(-1, -2) * (scaling if scaling is not None else q.shape[-1] ** -0.5)
    scores = (softcap * torch.tanh(scores / softcap)).masked_fill(~seen, -torch.inf)
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    return F.dropout(weights, dropout) @ v


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float, offset: bool) -> torch.Tensor:
        wide = x.to(_wide(x))
        factor = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, factor)
        ctx.offset = offset
        if offset:
            return (wide * factor).mul_(weight.to(wide.dtype) + 1).to(x.dtype)
        result = (wide * factor).to(x.dtype)
        return result.mul_(weight) if result.dtype == weight.dtype else result * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *given: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, factor = ctx.saved_tensors
        wide = x.to(factor.dtype)
        slope = given[0].to(factor.dtype)
        to_weight = None
        if ctx.needs_input_grad[1]:
            to_weight = torch.mv((slope * wide).flatten(0, -2).T, factor.flatten()).to(weight.dtype)
        scaled = slope * (weight.to(factor.dtype) + 1 if ctx.offset else weight)
        along = torch.linalg.vecdot(scaled, wide).unsqueeze(-1).mul_(factor.pow(3)).div_(-x.shape[-1])
        return scaled.mul_(factor).addcmul_(wide, along).to(x.dtype), to_weight, None, None


def _wide(x: torch.Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class _GLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor, activation: str) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return _activate(gate, activation).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *given: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        gate, up = ctx.saved_tensors
        slope = given[0] * up
        if ctx.activation == "silu":
            to_gate = torch.ops.aten.silu_backward(slope, gate)
        else:
            to_gate = torch.ops.aten.gelu_backward(slope, gate, approximate="tanh")
        return to_gate, _activate(gate, ctx.activation).mul_(given[0]), None


def _activate(gate: torch.Tensor, activation: str) -> torch.Tensor:
    return F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.dtype = x.dtype
        first, second = sin.chunk(2, dim=-1)
        return _turned(x, cos, first, second, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *given: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        cos, sin = ctx.saved_tensors
        first, second = sin.chunk(2, dim=-1)
        return _turned(given[0], cos, second, first, -1).to(ctx.dtype), None, None


def _turned(x: torch.Tensor, cos: torch.Tensor, first: torch.Tensor, second: torch.Tensor, sign: int) -> torch.Tensor:
    """Return ``x * cos`` plus the other half of x by the sine: minus it in the first half, plus it in the second."""
    width = cos.shape[-1]
    result = torch.mul(x[..., :width], cos)
    a, b = x[..., :width].chunk(2, dim=-1)
    low, high = result.chunk(2, dim=-1)
    low.addcmul_(b, first, value=-sign)
    high.addcmul_(a, second, value=sign)
    return result if width == x.shape[-1] else torch.cat([result, x[..., width:]], dim=-1)
