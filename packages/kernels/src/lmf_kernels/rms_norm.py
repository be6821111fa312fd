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

WIDEST = 16384  # elements of a row that the registers of a program hold
PROGRAMS = 528  # of the backward pass: some for each multiprocessor of the largest GPUs


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, *, offset: bool = False) -> torch.Tensor:
    """Return ``weight * x / sqrt(mean(x ** 2) + eps)``; see ``lmf.layers.rms_norm``.

    Raises:
        ValueError: The shapes do not fit, or the kernel does not know the precision or the width.
    """
    if plain(x, weight):
        return layers.rms_norm(x, weight, eps, offset=offset)
    _check("rms_norm", x, weight)
    with torch.cuda.device_of(x):  # Triton launches on the current one
        return _RMSNorm.apply(x, weight, eps, offset)  # pyright: ignore


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, *, offset: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the norm of ``residual + x``, and the sum; see ``lmf.layers.add_rms_norm``.

    Raises:
        ValueError: The shapes do not fit, or the kernel does not know the precision or the width.
    """
    if plain(x, residual, weight):
        return layers.add_rms_norm(x, residual, weight, eps, offset=offset)
    _check("add_rms_norm", x, weight, residual)
    if residual.shape != x.shape:
        raise ValueError(f"add_rms_norm gets {tuple(x.shape)} to add to {tuple(residual.shape)}.")
    with torch.cuda.device_of(x):
        return _AddRMSNorm.apply(x, residual, weight, eps, offset)  # pyright: ignore


def _check(name: str, x: torch.Tensor, weight: torch.Tensor, *more: torch.Tensor) -> None:
    check_dtypes(name, x, weight, *more)
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"{name} gets a weight of {tuple(weight.shape)} for rows of {x.shape[-1]}.")
    if not 0 < x.shape[-1] <= WIDEST:
        raise ValueError(f"{name} gets rows of {x.shape[-1]:,}; its kernel takes from 1 up to {WIDEST:,}.")


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float, offset: bool) -> torch.Tensor:
        y, rows, factor = _normed(x, None, weight, eps, offset)
        ctx.save_for_backward(rows, weight, factor)
        ctx.offset = offset
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *given: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return *_slopes(given[0], None, ctx, ctx.needs_input_grad[1]), None, None


class _AddRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, offset: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        y, total, factor = _normed(x, residual, weight, eps, offset)
        ctx.save_for_backward(total, weight, factor)
        ctx.offset, ctx.dtypes = offset, (x.dtype, residual.dtype)
        return y, total.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *given: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        to_total, to_weight = _slopes(given[0], given[1], ctx, ctx.needs_input_grad[2])
        to_x, to_residual = (to_total.to(dtype) for dtype in ctx.dtypes)
        return to_x, to_residual, to_weight, None, None


def _normed(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float, offset: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the norm, what was normalized, in rows, and the factor of each row."""
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    total = others = None
    if residual is not None:
        others = residual.reshape(rows.shape).contiguous()
        total = torch.empty_like(rows, dtype=torch.promote_types(x.dtype, residual.dtype))
    summed = rows if total is None else total
    y = torch.empty_like(summed, dtype=summed.dtype if offset else torch.promote_types(summed.dtype, weight.dtype))
    factor = torch.empty(len(rows), dtype=torch.float32, device=x.device)
    if len(rows):
        width, warps = _shape(rows.shape[1])
        tensors = (rows, others, weight.contiguous(), y, total, factor)
        _forward[(len(rows),)](*tensors, rows.shape[1], eps, offset, width, num_warps=warps)  # pyright: ignore
    return y.view(x.shape), summed, factor


def _slopes(
    by_y: torch.Tensor, by_total: torch.Tensor | None, ctx: Any, learned: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the gradients by what was normalized, in the shape of ``by_y``, and by the weight if it is learned."""
    rows, weight, factor = ctx.saved_tensors
    slope = by_y.reshape(rows.shape).contiguous()
    more = None if by_total is None else by_total.reshape(rows.shape).contiguous()
    to_rows = torch.empty_like(rows)
    count, d = rows.shape
    programs = min(PROGRAMS, count)
    parts = torch.empty(programs, d, dtype=torch.float32, device=rows.device) if learned else None
    if count:
        width, warps = _shape(d)
        tensors = (slope, more, rows, weight.contiguous(), factor, to_rows, parts)
        _backward[(programs,)](*tensors, count, d, ctx.offset, width, num_warps=warps)  # pyright: ignore
    return to_rows.view(by_y.shape), None if parts is None else parts.sum(0).to(weight.dtype)


def _shape(d: int) -> tuple[int, int]:
    """Return the elements of a row as a program holds them, and its warps."""
    width = 1 << max(0, d - 1).bit_length()
    return width, min(32, max(1, width // 512))


@triton.jit
def _forward(X, RESIDUAL, W, Y, SUM, F, d, eps, OFFSET: tl.constexpr, D: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, D)
    inside = at < d
    x = tl.load(X + row * d + at, mask=inside, other=0.0)
    if RESIDUAL is not None:
        more = tl.load(RESIDUAL + row * d + at, mask=inside, other=0.0)
        x = (x.to(tl.float32) + more.to(tl.float32)).to(SUM.dtype.element_ty)
        tl.store(SUM + row * d + at, x, mask=inside)
    wide = x.to(tl.float32)
    factor = tl.rsqrt(tl.sum(wide * wide, 0) / d + eps)
    tl.store(F + row, factor)
    w = tl.load(W + at, mask=inside, other=0.0).to(tl.float32)
    y = wide * factor * (1.0 + w) if OFFSET else (wide * factor).to(x.dtype).to(tl.float32) * w
    tl.store(Y + row * d + at, y.to(Y.dtype.element_ty), mask=inside)


@triton.jit
def _backward(G, MORE, X, W, F, DX, DW, rows, d, OFFSET: tl.constexpr, D: tl.constexpr):
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
        if DW is not None:
            to_weight += g * x * factor
        scaled = g * w
        along = tl.sum(scaled * x, 0) * factor * factor / d
        slope = (scaled - x * along) * factor
        if MORE is not None:
            slope += tl.load(MORE + here, mask=inside, other=0.0).to(tl.float32)
        tl.store(DX + here, slope.to(DX.dtype.element_ty), mask=inside)
        here += programs.to(tl.int64) * d
    if DW is not None:
        tl.store(DW + program * d + at, to_weight, mask=inside)


def variants(architecture: int) -> list[Any]:
    """Return what ``lmf_kernels.compiling`` is to compile; the same for every architecture."""
    from .compiling import Variant

    def norm(way: str, dtype: str, weight: str, d: int, added: bool, offset: bool, learned: bool = True) -> Variant:
        width, warps = _shape(d)
        kind, here = f"*{dtype}", f"*{dtype}" if added else None
        more: dict[str, Any] = {"W": f"*{weight}", "F": "*fp32", "d": "i32:16", "OFFSET": offset, "D": width}
        words = ["add and"] * added + ["rms_norm", way, dtype, str(d)] + ["offset"] * offset
        words += [f"weight {weight}"] * (weight != dtype) + ["frozen"] * (not learned)
        if way == "forward":
            y = kind if offset else f"*{weight}"
            more |= {"X": kind, "RESIDUAL": here, "SUM": here, "Y": y, "eps": "fp32"}
            return Variant(" ".join(words), _forward, more, warps)
        slope = kind if offset else f"*{weight}"
        more |= {"G": slope, "MORE": here, "X": kind, "DX": kind, "DW": "*fp32" if learned else None, "rows": "i32"}
        return Variant(" ".join(words), _backward, more, warps)

    found = []
    for way in ("forward", "backward"):
        for dtype in ("bf16", "fp16", "fp32"):
            for added in (False, True):
                found += [norm(way, dtype, dtype, d, added, False) for d in (1024, 4096, 8192, 16384)]
                found.append(norm(way, dtype, dtype, 4096, added, True))
                if dtype != "fp32":
                    found.append(norm(way, dtype, "fp32", 4096, added, False))
                if way == "backward":
                    found.append(norm(way, dtype, dtype, 4096, added, False, learned=False))
    return found
