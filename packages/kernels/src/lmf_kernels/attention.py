"""Causal attention within packed documents, in Triton (FlashAttention-2, Dao 2023, arXiv:2307.08691).

Shapes: N positions of all documents together, H heads of queries, K heads of keys and values, D the size of a head.

The scores are never written. Kept for the backward pass are the arguments, the output, and one number a row.
The gradients of keys and those of queries are made by a kernel each, without atomics: equal arguments give equal bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from lmf import layers
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakTensorKeyDictionary

from . import attention_triton
from .tensors import on_device, plain

if TYPE_CHECKING:
    from .compiling import Variant

KERNELS = {
    "forward": attention_triton.forward,
    "queries": attention_triton.backward_queries,
    "keys": attention_triton.backward_keys,
}
DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
_kept = WeakTensorKeyDictionary()  # tiles by bounds, so that the layers of a model share them


class _Blocks(NamedTuple):
    rows: int
    keys: int
    warps: int
    stages: int


# The largest head and the blocks for it: 80 is A100 and whatever is not named, with 99 KiB of shared memory or more;
# 90 is H100, 100 is B200. Without a window and a cap no head of ``variants`` spills registers.
HALF = {
    ("forward", 80): [(128, _Blocks(128, 64, 8, 2)), (256, _Blocks(64, 32, 4, 2))],
    ("forward", 90): [(128, _Blocks(128, 64, 8, 3)), (256, _Blocks(128, 32, 8, 2))],
    ("forward", 100): [(96, _Blocks(128, 64, 4, 3)), (128, _Blocks(128, 64, 8, 3)), (256, _Blocks(128, 32, 8, 2))],
    ("queries", 80): [(128, _Blocks(64, 32, 4, 2)), (256, _Blocks(64, 16, 8, 2))],
    ("queries", 90): [(128, _Blocks(128, 64, 8, 2)), (256, _Blocks(64, 64, 8, 2))],
    ("queries", 100): [(128, _Blocks(128, 64, 8, 2)), (256, _Blocks(64, 32, 8, 2))],
    ("keys", 80): [
        (64, _Blocks(32, 128, 8, 2)),
        (128, _Blocks(32, 64, 8, 2)),
        (160, _Blocks(16, 32, 4, 2)),
        (256, _Blocks(32, 32, 8, 2)),
    ],
    ("keys", 90): [(64, _Blocks(64, 128, 8, 2)), (128, _Blocks(32, 128, 8, 2)), (256, _Blocks(32, 64, 8, 2))],
    ("keys", 100): [(128, _Blocks(64, 128, 8, 2)), (256, _Blocks(32, 64, 8, 2))],
}
FULL = {"forward": _Blocks(32, 16, 8, 1), "queries": _Blocks(16, 16, 8, 1), "keys": _Blocks(16, 16, 8, 1)}


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bounds: torch.Tensor | Sequence[int],
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    hopper: bool = False,
) -> torch.Tensor:
    """Return the attention of each position to those before it in its document and to itself; (N, H, D).

    It is ``softmax(softcap * tanh(scale * q @ k.T / softcap)) @ v`` a document and head, with the positions that are
    not to be seen left out. Sums and the softmax are float32.

    Args:
        q: (N, H, D); bfloat16, float16 or float32. D is a power of two from 16 to 256 or the sum of two of them,
            as 80 or 96. Any strides; a tensor whose last dimension is not contiguous is copied.
        k: (N, K, D), where K divides H: heads of queries ``i * H // K`` up to the next share head ``i``.
        v: The same.
        bounds: Where documents begin, and N: 0, the end of the first, ..., N; numbers, or int32 on the device of q.
            Such a tensor must not be changed afterwards, because what is made of it is kept as long as it lives. On a
            GPU its values are not checked, as that would wait for it; see ``check_bounds``.
        scale: What the scores are multiplied by; ``D ** -0.5`` by default.
        window: How many positions each one sees, itself included; all by default.
        softcap: Bound of the scores; none by default.
        hopper: Compute the forward pass by ``attention_hopper`` where that is possible.

    Raises:
        ValueError: An argument is not as said here.
    """
    if plain(q, k, v):
        numbers = bounds.tolist() if isinstance(bounds, torch.Tensor) else bounds
        return layers.attention(q, k, v, numbers, scale=scale, window=window, softcap=softcap)
    if not isinstance(bounds, torch.Tensor):
        bounds = _checked(tuple(bounds), len(q), q.device)
    _check(q, k, v, bounds, scale, window, softcap)
    if bounds.device.type == "cpu":
        check_bounds(bounds, len(q))
    q, k, v = (_rows(x) for x in (q, k, v))
    options = _Options(float(q.shape[-1] ** -0.5 if scale is None else scale), window, softcap, hopper)
    with torch.cuda.device_of(q):  # Triton launches on the current one
        return _Attention.apply(q, k, v, bounds, options)  # pyright: ignore


@lru_cache(4)  # all layers of a model get the same
def _checked(bounds: tuple[int, ...], count: int, device: torch.device) -> torch.Tensor:
    check_bounds(torch.tensor(bounds), count)
    return on_device(bounds, device)


def check_bounds(bounds: torch.Tensor, count: int) -> None:
    """Raise if these are not the bounds of documents of ``count`` positions together. Waits for the GPU.

    Raises:
        ValueError: They are no whole numbers, do not begin with 0, do not end with ``count``, or fall.
    """
    if bounds.dtype not in (torch.int32, torch.int64) or bounds.dim() != 1 or len(bounds) < 2:
        raise ValueError(
            f"bounds are {bounds.dtype} of shape {tuple(bounds.shape)}; they must be (documents + 1,) integers"
        )
    values = bounds.tolist()
    if values[0] != 0 or values[-1] != count:
        raise ValueError(f"bounds go from {values[0]} to {values[-1]}; they must go from 0 to the {count} positions")
    fall = next((i for i in range(1, len(values)) if values[i] < values[i - 1]), None)
    if fall is not None:
        raise ValueError(f"bounds must not fall, as they do from {values[fall - 1]} to {values[fall]} at {fall}")


class _Options(NamedTuple):
    scale: float
    window: int | None
    softcap: float | None
    hopper: bool


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bounds: torch.Tensor, options: _Options
    ) -> torch.Tensor:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        lse = torch.empty(q.shape[1], q.shape[0], dtype=torch.float32, device=q.device)
        if not (options.hopper and _by_hopper(q, k, v, out, lse, bounds, options)):
            _launch("forward", (q, k, v, out, lse), (q, k, v), bounds, options)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.bounds, ctx.options = bounds, options
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *given: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, out, lse = ctx.saved_tensors
        slope = _rows(given[0])
        delta = torch.empty_like(lse)
        to_q, to_k, to_v = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
        strided = (q, k, v, slope)
        _launch("queries", (q, k, v, out, slope, lse, delta, to_q), strided, ctx.bounds, ctx.options)
        _launch("keys", (q, k, v, slope, lse, delta, to_k, to_v), strided, ctx.bounds, ctx.options)
        return to_q, to_k, to_v, None, None


def _rows(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _by_hopper(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    bounds: torch.Tensor,
    options: _Options,
) -> bool:
    """Compute ``out`` and ``lse`` by the kernel for Hopper, or return False if it cannot."""
    if _capability(q.device) != 90:
        return False
    from . import attention_hopper

    if not attention_hopper.possible(q, k, v, options.softcap):
        return False
    tiles = _tiles(bounds, len(q), attention_hopper.TILE, keys=False)
    attention_hopper.launch(q, k, v, out, lse, tiles, options.scale, options.window)
    return True


def _launch(
    kernel: str,
    tensors: tuple[torch.Tensor, ...],
    strided: tuple[torch.Tensor, ...],
    bounds: torch.Tensor,
    options: _Options,
) -> None:
    """Run a kernel of ``KERNELS`` on all tiles and heads; ``strided`` are q, k and what else has strides of its own."""
    q, k = strided[:2]
    count, heads, size = q.shape
    group = heads // k.shape[1]
    blocks = _blocks(kernel, size, q.dtype, _capability(q.device))
    if kernel == "keys":
        heads = k.shape[1]
    tiles = _tiles(bounds, count, blocks.keys if kernel == "keys" else blocks.rows, kernel == "keys")
    strides = [x.stride(dimension) for x in strided for dimension in (0, 1)]
    KERNELS[kernel][(len(tiles) * heads,)](
        *tensors, tiles, *strides, count, heads, group,
        options.scale, min(options.window or 0, count), float(options.softcap or 0),
        blocks.rows, blocks.keys, *_parts(size), options.window is not None, options.softcap is not None,
        num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip


def _tiles(bounds: torch.Tensor, count: int, block: int, keys: bool) -> torch.Tensor:
    """Return the tiles of all documents, those with most to do first; int32 of shape (tiles, 3).

    How many there are is known on the GPU only, so there is room for the most that there can be; the rest is empty.
    """
    if bounds not in _kept:
        _kept[bounds] = {}
    kept = _kept[bounds]
    if (block, keys) not in kept:
        starts, lengths = bounds[:-1], bounds.diff()
        blocks = (lengths + (block - 1)) // block
        ends = blocks.cumsum(0)
        number = torch.arange(count // block + len(starts), device=bounds.device)
        document = torch.searchsorted(ends, number, right=True)
        present = document < len(starts)
        document = document.clamp(max=len(starts) - 1)
        length = torch.where(present, lengths[document], 0)
        first = (number - (ends - blocks)[document]) * block
        order = torch.where(present, length - first if keys else first, -1).argsort(descending=True, stable=True)
        kept[block, keys] = torch.stack([starts[document], length, first], 1)[order].to(torch.int32)
    return kept[block, keys]


def _blocks(kernel: str, size: int, dtype: torch.dtype, capability: int) -> _Blocks:
    """Return how many rows of queries and of keys a program takes at a time.

    Args:
        kernel: A name of ``KERNELS``.
        size: D.
        dtype: Of q.
        capability: Of the GPU, as 90; 0 is the interpreter.
    """
    if capability == 0:
        return _Blocks(64, 32, 4, 1)
    if dtype == torch.float32:
        return FULL[kernel]
    generation = 100 if capability in (100, 103) else 90 if capability == 90 else 80
    return next(blocks for most, blocks in HALF[kernel, generation] if size <= most)


@cache
def _capability(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    if torch.version.hip is not None:  # AMD's numbers mean other GPUs: 90 is MI200
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _check(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bounds: torch.Tensor,
    scale: float | None,
    window: int | None,
    softcap: float | None,
) -> None:
    if q.dim() != 3 or k.dim() != 3 or k.shape != v.shape or (len(q), q.shape[2]) != (len(k), k.shape[2]):
        shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
        raise ValueError(f"shapes {shapes} of q, k, v do not fit; they must be (N, H, D), (N, K, D) and (N, K, D)")
    heads, others, size = q.shape[1], k.shape[1], q.shape[2]
    if others == 0 or heads == 0 or heads % others:
        raise ValueError(f"{heads} heads of queries cannot share {others} of keys; H must be a multiple of K")
    if not _possible(size):
        raise ValueError(
            f"head size {size} is not possible; a power of two from 16 to 256 is, or the sum of two, as 80 or 96"
        )
    if q.dtype not in DTYPES or not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"dtypes {q.dtype}, {k.dtype}, {v.dtype} of q, k, v; all must be bfloat16, float16 or float32")
    _check_form(bounds)
    if not q.device == k.device == v.device == bounds.device:
        devices = ", ".join(str(x.device) for x in (q, k, v, bounds))
        raise ValueError(f"q, k, v and bounds are on {devices}; they must be on one device")
    if scale is not None and not scale > 0:
        raise ValueError(f"scale is {scale}; it must be positive")
    if window is not None and (window < 1 or window != int(window)):
        raise ValueError(f"window is {window}; it must be a whole number from 1 on, or None")
    if softcap is not None and not 0 < softcap < math.inf:
        raise ValueError(f"softcap is {softcap}; it must be positive, or None")


def _check_form(bounds: torch.Tensor) -> None:
    if bounds.dtype != torch.int32 or bounds.dim() != 1 or len(bounds) < 2:
        raise ValueError(
            f"bounds are {bounds.dtype} of shape {tuple(bounds.shape)}; they must be int32 of shape (documents + 1,)"
        )


def _possible(size: int) -> bool:
    low, high = _parts(size)
    return 16 <= size <= 256 and low & (low - 1) == 0 and (high == 0 or (high >= 16 and high & (high - 1) == 0))


def _parts(size: int) -> tuple[int, int]:
    """Return the greatest power of two in the size of a head, and the rest."""
    first = 1 << max(size.bit_length() - 1, 0)
    return first, size - first


def variants(architecture: int) -> list[Variant]:
    """Return the kernels as they are compiled for an architecture, as 90, for the head sizes that models have."""
    half, full = [torch.bfloat16, torch.float16], [torch.float32]
    chosen = [(size, dtype, False, False) for dtype in half for size in (64, 80, 96, 128, 256)]
    chosen += [(128, dtype, window, softcap) for dtype in half for window, softcap in ((True, False), (False, True))]
    chosen += [(size, dtype, True, True) for dtype in half for size in (64, 80, 96, 128, 256)]
    chosen += [(size, dtype, both, both) for dtype in full for size in (64, 80, 96, 128, 256) for both in (False, True)]
    return [_variant(kernel, architecture, *each) for kernel in KERNELS for each in chosen]


def _variant(kernel: str, architecture: int, size: int, dtype: torch.dtype, window: bool, softcap: bool) -> Variant:
    from .compiling import Variant

    blocks = _blocks(kernel, size, dtype, architecture)
    low, high = _parts(size)
    given: dict[str, Any] = {"TILES": "*i32", "LSE": "*fp32", "DELTA": "*fp32", "scale": "fp32", "softcap": "fp32"}
    given |= {"BM": blocks.rows, "BN": blocks.keys, "D0": low, "D1": high}
    given |= {"WINDOW": window, "SOFTCAP": softcap}
    given |= {name: "i32:16" for name in KERNELS[kernel].arg_names if name.startswith("stride")}
    names = KERNELS[kernel].arg_names
    arguments = {name: given.get(name, f"*{DTYPES[dtype]}" if name.isupper() else "i32") for name in names}
    words = ["attention", kernel, DTYPES[dtype], str(size), *["window"] * window, *["softcap"] * softcap]
    return Variant(" ".join(words), KERNELS[kernel], arguments, blocks.warps, blocks.stages)
