"""Rotary positions in Triton; ``lmf.layers.rotary`` is their definition.

Shapes: B rows, H heads, N positions, D the size of a head, R the part of it that is turned. A program turns all heads
of some tokens, so the cosines and sines of a token are read once.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from lmf import layers
from torch.autograd.function import once_differentiable

from .tensors import check_dtypes, plain

WARPS = 4


def rotary(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return q and k turned by the angles of their positions; see ``lmf.layers.rotary``.

    Raises:
        ValueError: The shapes do not fit, or the kernel does not know the precision.
    """
    if plain(q, k, cos, sin):
        return layers.rotary(q, k, cos, sin, unsqueeze_dim)
    check_dtypes("rotary", q, k, cos, sin)
    heads = {1: 1, -3: 1, 2: 2, -2: 2}.get(unsqueeze_dim)
    if heads is None or q.ndim != 4 or k.ndim != 4 or cos.shape != sin.shape or cos.ndim != 3 or cos.shape[-1] % 2:
        shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, cos, sin))
        raise ValueError(f"rotary gets {shapes} and unsqueeze_dim {unsqueeze_dim}; see lmf.layers.rotary.")
    for x in (q, k):
        if x.shape[3 - heads] != cos.shape[1] or x.shape[-1] < cos.shape[-1] or cos.shape[0] not in (1, len(x)):
            raise ValueError(f"rotary gets {tuple(x.shape)} and the angles of {tuple(cos.shape)}.")
    with torch.cuda.device_of(q):  # Triton launches on the current one
        return _Rotary.apply(q, cos, sin, heads), _Rotary.apply(k, cos, sin, heads)  # pyright: ignore


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, heads: int) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.dtype, ctx.heads = x.dtype, heads
        return _turned(x, cos, sin, heads, torch.promote_types(x.dtype, cos.dtype), back=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *given: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        cos, sin = ctx.saved_tensors
        return _turned(given[0], cos, sin, ctx.heads, ctx.dtype, back=True), None, None, None


def _turned(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, heads: int, dtype: torch.dtype, back: bool
) -> torch.Tensor:
    x = x if x.stride(-1) == 1 else x.contiguous()
    cos, sin = cos.contiguous(), sin.contiguous()
    result = torch.empty_like(x, dtype=dtype)
    batch, positions, width = len(x), x.shape[3 - heads], cos.shape[-1]
    if x.numel():
        strides = [each.stride(dim) for each in (x, result) for dim in (0, heads, 3 - heads)]
        _turn[(batch * positions,)](
            *(x, cos, sin, result, *strides, positions, x.shape[heads], x.shape[3]),
            *(0 if len(cos) == 1 else positions * width, back, width // 2),
            *_sizes(x.shape[heads], width, x.shape[3]),
            num_warps=WARPS,  # pyright: ignore
        )
    return result


def _sizes(heads: int, width: int, size: int) -> tuple[int, int, int]:
    """Return the powers of two that hold the heads, half of what is turned, and what is not."""
    rest = size - width
    return _power(heads), _power(width // 2), _power(rest) if rest else 0


def _power(count: int) -> int:
    return 1 << (count - 1).bit_length()


@triton.jit
def _turn(
    X, COS, SIN, Y, xb, xh, xn, yb, yh, yn, positions, heads, size, batch_stride,
    BACK: tl.constexpr, HALF: tl.constexpr, H: tl.constexpr, R: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) // positions
    n = tl.program_id(0) % positions
    head = tl.arange(0, H)[:, None]
    at = tl.arange(0, R)[None, :]
    own = at < HALF
    inside = own & (head < heads)
    angles = row.to(tl.int64) * batch_stride + n.to(tl.int64) * (2 * HALF) + at
    cos_low = tl.load(COS + angles, mask=own, other=0.0).to(tl.float32)
    cos_high = tl.load(COS + angles + HALF, mask=own, other=0.0).to(tl.float32)
    sin_low = tl.load(SIN + angles, mask=own, other=0.0).to(tl.float32)
    sin_high = tl.load(SIN + angles + HALF, mask=own, other=0.0).to(tl.float32)
    x_at = X + row.to(tl.int64) * xb + n.to(tl.int64) * xn + head.to(tl.int64) * xh
    y_at = Y + row.to(tl.int64) * yb + n.to(tl.int64) * yn + head.to(tl.int64) * yh
    low = tl.load(x_at + at, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(x_at + at + HALF, mask=inside, other=0.0).to(tl.float32)
    if BACK:
        y_low = low * cos_low + high * sin_high
        y_high = high * cos_high - low * sin_low
    else:
        y_low = low * cos_low - high * sin_low
        y_high = high * cos_high + low * sin_high
    tl.store(y_at + at, y_low.to(Y.dtype.element_ty), mask=inside)
    tl.store(y_at + at + HALF, y_high.to(Y.dtype.element_ty), mask=inside)
    if REST > 0:
        more = 2 * HALF + tl.arange(0, REST)[None, :]
        left = (more < size) & (head < heads)
        tl.store(y_at + more, tl.load(x_at + more, mask=left, other=0.0).to(Y.dtype.element_ty), mask=left)


def variants(architecture: int) -> list[Any]:
    """Return what ``lmf_kernels.compiling`` is to compile; the same for every architecture."""
    from .compiling import Variant

    found = []
    shapes = ((32, 128, 128), (8, 256, 256), (32, 80, 32))
    chosen = [(dtype, dtype, *shape) for dtype in ("bf16", "fp16", "fp32") for shape in shapes]
    chosen += [(dtype, "fp32", *shapes[0]) for dtype in ("bf16", "fp16")]  # angles of models under autocast
    for dtype, angles, heads, size, width in chosen:
        arguments = {f"{tensor}{dim}": "i32:16" for tensor in "xy" for dim in "bhn"}
        arguments |= {"positions": "i32", "heads": "i32", "size": "i32:16", "batch_stride": "i32:16"}
        arguments |= dict(zip(("HALF", "H", "R", "REST"), (width // 2, *_sizes(heads, width, size)), strict=True))
        for back in (False, True):
            # what comes out is as wide as the angles, and so are its gradients
            kinds = dict(zip(("X", "Y"), (angles, dtype) if back else (dtype, angles), strict=True))
            pointers = {name: f"*{kind}" for name, kind in (kinds | {"COS": angles, "SIN": angles}).items()}
            name = f"rotary {'backward' if back else 'forward'} {dtype} {heads}x{size}, {width} turned"
            name += f", angles {angles}" * (angles != dtype)
            found.append(Variant(name, _turn, pointers | arguments | {"BACK": back}, WARPS))
    return found
