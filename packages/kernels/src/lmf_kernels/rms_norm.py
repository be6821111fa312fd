"""RMS norm in Triton; ``lmf.layers.rms_norm`` is its definition.

Shapes: d is the width, N the rows. A program reads each of its rows once and holds it in registers. The gradient of the
weight is added up by each program over its own rows, and then over the programs, always in the same order.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from lmf import layers
from torch.autograd.function import once_differentiable

from .tensors import check_dtypes, plain

WIDEST = 32768  # elements of a row that the registers of a program hold
PROGRAMS = 528  # of the backward pass: some for each multiprocessor of the largest GPUs


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, *, offset: bool = False) -> torch.Tensor:
    """Return ``weight * x / sqrt(mean(x ** 2) + eps)``; see ``lmf.layers.rms_norm``.

    Raises:
        ValueError: The shapes do not fit, or the kernel does not know the precision or the width.
    """
    if plain(x, weight):
        return layers.rms_norm(x, weight, eps, offset=offset)
    check_dtypes("rms_norm", x, weight)
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"rms_norm gets a weight of {tuple(weight.shape)} for rows of {x.shape[-1]}.")
    if x.shape[-1] > WIDEST:
        raise ValueError(f"rms_norm gets rows of {x.shape[-1]:,}; its kernel takes up to {WIDEST:,}.")
    return _RMSNorm.apply(x, weight, eps, offset)  # pyright: ignore


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float, offset: bool) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        y = torch.empty_like(rows, dtype=x.dtype if offset else torch.promote_types(x.dtype, weight.dtype))
        factor = torch.empty(len(rows), dtype=torch.float32, device=x.device)
        if len(rows):
            width, warps = _shape(rows.shape[1])
            _forward[(len(rows),)](rows, weight, y, factor, rows.shape[1], eps, offset, width, num_warps=warps)  # pyright: ignore
        ctx.save_for_backward(rows, weight, factor)
        ctx.offset, ctx.shape = offset, x.shape
        return y.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *given: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, weight, factor = ctx.saved_tensors
        slope = given[0].reshape(rows.shape).contiguous()
        to_x = torch.empty_like(rows)
        count, d = rows.shape
        programs = min(PROGRAMS, count)
        parts = torch.empty(programs, d, dtype=torch.float32, device=rows.device)
        if count:
            width, warps = _shape(d)
            inputs = (slope, rows, weight, factor, to_x, parts)
            _backward[(programs,)](*inputs, count, d, ctx.offset, width, num_warps=warps)  # pyright: ignore
        to_weight = parts.sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        return to_x.view(ctx.shape), to_weight, None, None


def _shape(d: int) -> tuple[int, int]:
    """Return the elements of a row as a program holds them, and its warps."""
    width = 1 << max(0, d - 1).bit_length()
    return width, min(16, max(1, width // 512))


@triton.jit
def _forward(X, W, Y, F, d, eps, OFFSET: tl.constexpr, D: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, D)
    inside = at < d
    x = tl.load(X + row * d + at, mask=inside, other=0.0)
    wide = x.to(tl.float32)
    factor = tl.rsqrt(tl.sum(wide * wide, 0) / d + eps)
    tl.store(F + row, factor)
    w = tl.load(W + at, mask=inside, other=0.0).to(tl.float32)
    y = wide * factor * (1.0 + w) if OFFSET else (wide * factor).to(x.dtype).to(tl.float32) * w
    tl.store(Y + row * d + at, y.to(Y.dtype.element_ty), mask=inside)


@triton.jit
def _backward(G, X, W, F, DX, DW, rows, d, OFFSET: tl.constexpr, D: tl.constexpr):
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    at = tl.arange(0, D)
    inside = at < d
    w = tl.load(W + at, mask=inside, other=0.0).to(tl.float32)
    if OFFSET:
        w = w + 1.0
    to_weight = tl.zeros([D], tl.float32)
    here = program.to(tl.int64) * d + at
    for row in range(program, rows, programs):
        x = tl.load(X + here, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(G + here, mask=inside, other=0.0).to(tl.float32)
        factor = tl.load(F + row)
        to_weight += g * x * factor
        scaled = g * w
        along = tl.sum(scaled * x, 0) * factor * factor / d
        tl.store(DX + here, ((scaled - x * along) * factor).to(DX.dtype.element_ty), mask=inside)
        here += programs.to(tl.int64) * d
    tl.store(DW + program * d + at, to_weight, mask=inside)


def variants(architecture: int) -> list[Any]:
    """Return what ``lmf_kernels.compiling`` is to compile; the same for every architecture."""
    from .compiling import Variant

    found = []
    for dtype in ("bf16", "fp16", "fp32"):
        for d in (1024, 4096, 8192):
            width, warps = _shape(d)
            pointers = dict.fromkeys("XWY", f"*{dtype}") | {"F": "*fp32"}
            more = {"d": "i32:16", "eps": "fp32", "OFFSET": False, "D": width}
            found.append(Variant(f"rms_norm forward {dtype} {d}", _forward, pointers | more, warps))
            pointers = dict.fromkeys("GXW", f"*{dtype}") | {"F": "*fp32", "DX": f"*{dtype}", "DW": "*fp32"}
            more = {"rows": "i32", "d": "i32:16", "OFFSET": False, "D": width}
            found.append(Variant(f"rms_norm backward {dtype} {d}", _backward, pointers | more, warps))
    return found
