"""Gated units in Triton, SwiGLU and GeGLU; ``lmf.layers.glu`` is their definition.

Each element is read once and written once. The backward pass computes the activation anew, so nothing but the two
arguments is kept.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from lmf import layers
from torch.autograd.function import once_differentiable

from .tensors import check_dtypes, plain

BLOCK = 2048  # elements of a program
WARPS = 8
ACTIVATIONS = ("silu", "gelu")


def glu(gate: torch.Tensor, up: torch.Tensor, activation: str) -> torch.Tensor:
    """Return ``activation(gate) * up``; see ``lmf.layers.glu``.

    Raises:
        ValueError: The shapes or precisions differ, or the kernel does not know them or the activation.
    """
    if plain(gate, up):
        return layers.glu(gate, up, activation)
    check_dtypes("glu", gate, up)
    if gate.shape != up.shape or gate.dtype != up.dtype:
        raise ValueError(f"glu gets {gate.dtype} {tuple(gate.shape)} and {up.dtype} {tuple(up.shape)}.")
    if activation not in ACTIVATIONS:
        raise ValueError(f"glu gets the activation {activation!r}; its kernel computes {' and '.join(ACTIVATIONS)}.")
    with torch.cuda.device_of(gate):  # Triton launches on the current one
        return _GLU.apply(gate, up, activation == "silu")  # pyright: ignore


class _GLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor, silu: bool) -> torch.Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        result = torch.empty_like(gate)
        count = gate.numel()
        if count:
            _forward[(triton.cdiv(count, BLOCK),)](gate, up, result, count, silu, BLOCK, num_warps=WARPS)  # pyright: ignore
        ctx.save_for_backward(gate, up)
        ctx.silu = silu
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *given: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        gate, up = ctx.saved_tensors
        slope = given[0].contiguous()
        to_gate, to_up = torch.empty_like(gate), torch.empty_like(up)
        count = gate.numel()
        if count:
            inputs = (slope, gate, up, to_gate, to_up, count, ctx.silu, BLOCK)
            _backward[(triton.cdiv(count, BLOCK),)](*inputs, num_warps=WARPS)  # pyright: ignore
        return to_gate, to_up, None


@triton.jit
def _activated(x, SILU: tl.constexpr):
    """Return an activation and its derivative; of GELU, the approximation with tanh."""
    if SILU:
        share = tl.sigmoid(x)
        value = x * share
        slope = share * (1.0 + x * (1.0 - share))
    else:
        inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        tanh = 2.0 * tl.sigmoid(2.0 * inner) - 1.0
        value = 0.5 * x * (1.0 + tanh)
        slope = 0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * 0.7978845608028654 * (1.0 + 0.134145 * x * x)
    return value, slope


@triton.jit
def _forward(GATE, UP, Y, count, SILU: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    gate = tl.load(GATE + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(UP + at, mask=inside, other=0.0).to(tl.float32)
    value, _ = _activated(gate, SILU)  # pyright: ignore[reportGeneralTypeIssues]
    tl.store(Y + at, (value * up).to(Y.dtype.element_ty), mask=inside)


@triton.jit
def _backward(G, GATE, UP, DGATE, DUP, count, SILU: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    g = tl.load(G + at, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(GATE + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(UP + at, mask=inside, other=0.0).to(tl.float32)
    value, slope = _activated(gate, SILU)  # pyright: ignore[reportGeneralTypeIssues]
    tl.store(DGATE + at, (g * up * slope).to(DGATE.dtype.element_ty), mask=inside)
    tl.store(DUP + at, (g * value).to(DUP.dtype.element_ty), mask=inside)


def variants(architecture: int) -> list[Any]:
    """Return what ``lmf_kernels.compiling`` is to compile; the same for every architecture."""
    from .compiling import Variant

    found = []
    for dtype in ("bf16", "fp16", "fp32"):
        for silu in (True, False):
            more = {"count": "i32:16", "SILU": silu, "BLOCK": BLOCK}
            name = "silu" if silu else "gelu"
            forward = dict.fromkeys(("GATE", "UP", "Y"), f"*{dtype}")
            found.append(Variant(f"glu forward {dtype} {name}", _forward, forward | more, WARPS))
            backward = dict.fromkeys(("G", "GATE", "UP", "DGATE", "DUP"), f"*{dtype}")
            found.append(Variant(f"glu backward {dtype} {name}", _backward, backward | more, WARPS))
    return found
