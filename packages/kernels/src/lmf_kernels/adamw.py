"""A step of AdamW in one Triton kernel: each number is read once and written once.

A bfloat16 weight with an int16 remainder beside it is a float32, cut as ``lmf_lisa.precision.halved`` cuts it: the
nearest bfloat16, halves away from zero, and what is left. So a parameter takes 2 + 2 bytes, 2 of a bfloat16
gradient, and 4 + 4 of the moments, or 1 + 1 where these have 8 bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from .tensors import plain

BLOCK = 1024  # elements of a program; 4 of each thread, which are 16 bytes of float32
WARPS = 8
SHARED = 256  # elements that share a scale


class EightBit(NamedTuple):
    """A moment of 8 bits, as the optimizer ``adamw-8bit`` keeps it (arXiv:2110.02861, sections 2.1 and 2.2).

    Attributes:
        codes: Where each number is in the code; uint8 in the shape of the weight.
        scales: The largest of each 256 numbers; float32, (numbers / 256, rounded up,).
        code: Numbers up to 1 in order; float32, (256,).
    """

    codes: torch.Tensor
    scales: torch.Tensor
    code: torch.Tensor


@torch.no_grad()
def adamw_(
    weight: torch.Tensor,
    remainder: torch.Tensor | None,
    gradient: torch.Tensor,
    exp_avg: torch.Tensor | EightBit,
    exp_avg_sq: torch.Tensor | EightBit,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    step: int,
    rows: torch.Tensor | None = None,
) -> None:
    """Do one step in place, in float32, as ``torch.optim.AdamW`` does (arXiv:1711.05101, algorithm 2).

    With ``rows``, only these rows of weight, remainder and gradient are read, and of the first two written. Their
    moments are kept as the optimizer ``adamw-rows`` keeps them: the first of R belongs to ``rows[0]``. Other rows
    do not decay.

    Args:
        weight: float32, or bfloat16 with a remainder; any shape, with ``rows`` (V, D).
        remainder: What a bfloat16 weight lacks of a float32; int16 in the shape of the weight.
        gradient: bfloat16 or float32, in the shape of the weight.
        exp_avg: The first moment, float32; in the shape of the weight, with ``rows`` (R, D). Or of 8 bits, without
            ``rows``.
        exp_avg_sq: The second moment, the same.
        lr: The learning rate.
        betas: The decay of each moment.
        eps: Added to the root of the second moment.
        weight_decay: What a weight loses, as a factor of ``lr`` and itself.
        step: The number of this step; the first is 1.
        rows: Rows that are stepped, int64, each once; (R,), all by default.

    Raises:
        ValueError: Shapes, precisions, devices or numbers do not fit.
    """
    if plain(weight):
        raise ValueError(f"weight is on {weight.device}; the kernel steps weights on a GPU.")
    moments = [moment if isinstance(moment, EightBit) else (moment, None, None) for moment in (exp_avg, exp_avg_sq)]
    _check(weight, remainder, gradient, moments, rows)
    if step < 1 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"step is {step} and betas {betas}; step must be at least 1, each beta from 0 to below 1.")
    if rows is None:
        width, grid = weight.numel(), (triton.cdiv(weight.numel(), BLOCK),)
    else:
        width, grid = weight.shape[1], (len(rows), triton.cdiv(weight.shape[1], BLOCK))
    if not all(grid):
        return
    tensors = (weight if remainder is None else weight.view(torch.int16), remainder, gradient, *moments[0], *moments[1])
    rate, root = lr / (1 - betas[0] ** step), math.sqrt(1 - betas[1] ** step)
    numbers = map(float, (1 - lr * weight_decay, 1 - betas[0], betas[1], 1 - betas[1], rate, root, eps))
    with torch.cuda.device_of(weight):  # Triton launches on the current one
        _adamw[grid](*tensors, rows, width, *numbers, BLOCK, SHARED, num_warps=WARPS)  # pyright: ignore


def _check(
    weight: torch.Tensor,
    remainder: torch.Tensor | None,
    gradient: torch.Tensor,
    moments: Sequence[tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]],
    rows: torch.Tensor | None,
) -> None:
    """Raise a ValueError if a tensor does not fit the weight."""
    needed = torch.float32 if remainder is None else torch.bfloat16
    if weight.dtype != needed:
        raise ValueError(f"weight is {weight.dtype}; it must be float32 alone, or bfloat16 with a remainder.")
    bits = {32 if scales is None else 8 for _, scales, _ in moments}
    if len(bits) > 1 or (8 in bits and rows is not None):
        raise ValueError("exp_avg and exp_avg_sq must both be tensors, or both EightBit and then without rows.")
    state = weight.shape
    if rows is not None:
        if weight.ndim != 2 or rows.ndim != 1:
            raise ValueError(
                f"weight is {tuple(weight.shape)} and rows {tuple(rows.shape)}; they must be (V, D) and (R,)."
            )
        state = (len(rows), weight.shape[1])
    expected = [
        ("weight", weight, weight.shape, (needed,)),
        ("remainder", remainder, weight.shape, (torch.int16,)),
        ("gradient", gradient, weight.shape, (torch.bfloat16, torch.float32)),
        ("rows", rows, state[:1], (torch.int64,)),
    ]
    for name, (numbers, scales, code) in zip(("exp_avg", "exp_avg_sq"), moments, strict=True):
        expected += [
            (name, numbers, state, (torch.float32 if scales is None else torch.uint8,)),
            (f"{name}.scales", scales, (triton.cdiv(weight.numel(), SHARED),), (torch.float32,)),
            (f"{name}.code", code, (256,), (torch.float32,)),
        ]
    for name, tensor, shape, dtypes in expected:
        if tensor is None:
            continue
        if tensor.shape != shape or tensor.dtype not in dtypes:
            raise ValueError(
                f"{name} is {tuple(tensor.shape)} of {tensor.dtype}; it must be {tuple(shape)} of "
                f"{' or '.join(map(str, dtypes))}."
            )
        if not tensor.is_contiguous() or tensor.device != weight.device:
            raise ValueError(f"{name} must be contiguous and on the device of the weight, {weight.device}.")
    if rows is not None and rows.device.type == "cpu" and len(rows) and not 0 <= rows.min() <= rows.max() < len(weight):
        raise ValueError(f"rows are from {rows.min()} to {rows.max()}; they must be from 0 to {len(weight) - 1}.")


@triton.jit
def _adamw(
    W, REMAINDER, G, M, M_SCALES, M_CODE, S, S_SCALES, S_CODE, ROWS, stride,
    kept, rest1, beta2, rest2, rate, root, eps, BLOCK: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """Step elements of a row of W, or of all of it; ``stride`` is the size of that. What is not there is None."""
    first = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    if ROWS is None:
        start = first * BLOCK
        here = start
        state = start
    else:
        start = tl.program_id(1) * BLOCK
        here = tl.load(ROWS + first) * stride + start
        state = first * stride + start
    left = stride - start
    inside = at < left
    w = tl.load(W + here + at, mask=inside, other=0)
    if REMAINDER is not None:
        bits = (w.to(tl.int32) << 16) + tl.load(REMAINDER + here + at, mask=inside, other=0).to(tl.int32)
        w = bits.to(tl.float32, bitcast=True)
    g = tl.load(G + here + at, mask=inside, other=0.0).to(tl.float32)
    m = _moment(M, M_SCALES, M_CODE, state, left, BLOCK, SHARED)
    s = _moment(S, S_SCALES, S_CODE, state, left, BLOCK, SHARED)
    m += (g - m) * rest1
    s = s * beta2 + rest2 * g * g
    w = w * kept - rate * m / (tl.sqrt(s) / root + eps)
    if REMAINDER is None:
        tl.store(W + here + at, w, mask=inside)
    else:
        bits = w.to(tl.int32, bitcast=True)
        upper = (bits + 0x8000) >> 16
        tl.store(W + here + at, upper.to(tl.int16), mask=inside)
        tl.store(REMAINDER + here + at, (bits - (upper << 16)).to(tl.int16), mask=inside)
    _keep(m, M, M_SCALES, M_CODE, state, left, BLOCK, SHARED)
    _keep(s, S, S_SCALES, S_CODE, state, left, BLOCK, SHARED)


@triton.jit
def _moment(M, SCALES, CODE, start, left, BLOCK: tl.constexpr, SHARED: tl.constexpr):
    """Return a moment in float32, 0 behind the last."""
    at = tl.arange(0, BLOCK)
    inside = at < left
    m = tl.load(M + start + at, mask=inside, other=0)
    if SCALES is not None:
        m = tl.load(CODE + m.to(tl.int32)) * tl.load(SCALES + start // SHARED + at // SHARED, mask=inside, other=0.0)
    return m


@triton.jit
def _keep(m, M, SCALES, CODE, start, left, BLOCK: tl.constexpr, SHARED: tl.constexpr):
    """Store a moment; of 8 bits, as the nearest of the code, and the scales."""
    at = tl.arange(0, BLOCK)
    if SCALES is not None:
        parts = tl.reshape(m, [BLOCK // SHARED, SHARED])
        scales = tl.max(tl.abs(parts), 1)
        share = tl.reshape(parts / tl.where(scales > 0, scales, 1.0)[:, None], [BLOCK])
        below = tl.zeros([BLOCK], tl.int32)  # the last of the code that is no larger, found bit by bit
        for bit in tl.static_range(7, -1, -1):
            higher = below + (1 << bit)
            below = tl.where(tl.load(CODE + higher) <= share, higher, below)
        above = tl.minimum(below + 1, 255)
        m = tl.where(tl.load(CODE + above) - share < share - tl.load(CODE + below), above, below).to(tl.uint8)
        part = tl.arange(0, BLOCK // SHARED)
        tl.store(SCALES + start // SHARED + part, scales, mask=part * SHARED < left)
    tl.store(M + start + at, m, mask=at < left)


def variants(architecture: int) -> list[Any]:
    """Return what ``lmf_kernels.compiling`` is to compile; the same for every architecture."""
    from .compiling import Variant

    weights = {"bf16 and remainder": {"W": "*i16", "REMAINDER": "*i16"}, "fp32": {"W": "*fp32"}}
    eight = {"": "*u8", "_SCALES": "*fp32", "_CODE": "*fp32"}
    moments = {
        "": {"M": "*fp32", "S": "*fp32"},
        " rows": {"M": "*fp32", "S": "*fp32", "ROWS": "*i64"},
        " 8 bits": {f"{name}{part}": kind for name in "MS" for part, kind in eight.items()},
    }
    return [
        Variant(
            f"adamw {name} gradient {gradient}{kept}",
            _adamw,
            {
                **dict.fromkeys(_adamw.arg_names),
                **dict.fromkeys(("kept", "rest1", "beta2", "rest2", "rate", "root", "eps"), "fp32"),
                **{"G": f"*{gradient}", "stride": "i32:16", "BLOCK": BLOCK, "SHARED": SHARED},
                **weight,
                **state,
            },
            WARPS,
        )
        for name, weight in weights.items()
        for gradient in ("bf16", "fp32")
        for kept, state in moments.items()
    ]
