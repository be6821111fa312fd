"""The forward pass of ``lmf_kernels.attention`` for Hopper (sm90), in Triton's Gluon. It has never run on a GPU.

A program takes a tile of 128 queries of one document and one head, as ``attention_triton`` says. One warp lets the
copy engine bring keys and values; two groups of four warps, with 64 queries each, multiply and weigh them. While the
tensor cores add up the values of one block, the scores of the next are weighed (FlashAttention-3, Shah et al. 2024,
arXiv:2407.08608, algorithm 2).

    copied ──full──> multiplied by both groups ──empty──> copied over by a later block

Blocks are gone through backwards, from the one on the diagonal. It alone is masked if there is no window: a block has
as many keys as a tile has queries, so keys past the end of a document come after all of its queries. Their values
are multiplied by zero, which leaves NaN of a NaN or an infinity that the next document has there.
"""

# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# (what is declared in Gluon is what its compiler calls, not what a kernel does)

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

if TYPE_CHECKING:
    from .compiling import Variant

DTYPES = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}
DEPTHS = {64: 4, 128: 2}  # blocks of keys, and as many of values, that 227 KiB of shared memory hold, by D
TILE = 128  # queries of a program, and keys of a block
ROWS = gl.constexpr(TILE // 2)  # queries of a group of warps
KEYS = gl.constexpr(TILE)
SCORES = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE, 16]))  # where registers hold (ROWS, KEYS)
LOG2E = gl.constexpr(1.4426950408889634)


def possible(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, softcap: float | None) -> bool:
    """Tell whether the kernel computes these: (N, H, D), (N, K, D) and (N, K, D), as the copy engine takes them."""
    aligned = all(x.data_ptr() % 16 == 0 for x in (q, k, v))
    aligned &= all(stride > 0 and stride % 8 == 0 for x in (q, k, v) for stride in x.stride()[:2])
    return aligned and softcap is None and q.dtype in DTYPES and q.shape[2] in DEPTHS and len(q) > 0


def launch(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    tiles: torch.Tensor,
    scale: float,
    window: int | None,
) -> None:
    """Fill ``out``, (N, H, D), and ``lse``, (H, N); ``tiles`` of ``TILE`` rows are as ``attention`` makes them."""
    count, heads, size = q.shape
    forward[(len(tiles) * heads,)](
        _descriptor(q, TILE // 2), _descriptor(k, TILE), _descriptor(v, TILE), out, lse, tiles,
        count, heads, heads // k.shape[1], scale, min(window or 0, count), DEPTHS[size], window is not None,
        num_warps=4,
    )  # fmt: skip


def _descriptor(x: torch.Tensor, rows: int) -> Any:
    """Return what the copy engine needs to bring ``rows`` rows of a head; those past the end are zeros."""
    block = [1, rows, x.shape[2]]
    return TensorDescriptor.from_tensor(x.transpose(0, 1), block, _layout(block, x.dtype))


def _layout(block: list[int], dtype: torch.dtype) -> Any:
    return gl.NVMMASharedLayout.get_default_for(block, DTYPES[dtype])


@gluon.jit(do_not_specialize=["count", "heads", "group", "window"])
def forward(
    Q, K, V, OUT, LSE, TILES, count, heads, group, scale, window, STAGES: gl.constexpr, WINDOW: gl.constexpr
):  # fmt: skip
    """Write the output of a tile of queries, and the logarithms of the sums of its rows (LSE, heads by positions)."""
    program = gl.program_id(0)
    TILES += 3 * (program // heads)
    start = gl.load(TILES)
    length = gl.load(TILES + 1)
    first = gl.load(TILES + 2)
    if first >= length:
        return
    head = program % heads
    blocks = first // KEYS + 1
    whole = blocks  # the first one that a window cuts
    if WINDOW:
        blocks = blocks - gl.maximum(first - window + 1, 0) // KEYS
        whole = gl.minimum(gl.maximum(window // KEYS, 1), blocks)
    D: gl.constexpr = Q.block_type.shape[2]
    queries = gl.allocate_shared_memory(Q.dtype, [2, 1, ROWS, D], Q.layout)
    keys = gl.allocate_shared_memory(K.dtype, [STAGES, 1, KEYS, D], K.layout)
    values = gl.allocate_shared_memory(V.dtype, [STAGES, 1, KEYS, D], V.layout)
    layout: gl.constexpr = mbarrier.MBarrierLayout()
    queries_full = gl.allocate_shared_memory(gl.int64, [2, 1], layout)
    keys_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], layout)
    keys_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], layout)
    values_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], layout)
    values_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], layout)
    for consumer in gl.static_range(2):
        mbarrier.init(queries_full.index(consumer), count=1)
    for slot in gl.static_range(STAGES):
        mbarrier.init(keys_full.index(slot), count=1)
        mbarrier.init(keys_empty.index(slot), count=2)
        mbarrier.init(values_full.index(slot), count=1)
        mbarrier.init(values_empty.index(slot), count=2)
    q, k, v = (queries, queries_full), (keys, keys_full, keys_empty), (values, values_full, values_empty)
    given = (OUT, LSE, start, length, first, count, heads, head, scale, window, whole, blocks)
    gl.warp_specialize([
        (_attend, (0, q, k, v, given, WINDOW)),
        (_attend, (1, q, k, v, given, WINDOW)),
        (_load, (Q, K, V, q, k, v, head, head // group, start + first, blocks)),
    ], [4, 1], [240, 24])  # fmt: skip


@gluon.jit
def _load(Q, K, V, q, k, v, head, shared, row, blocks):
    """Have all copied that a tile needs, in the order of need; ``row`` is the first of the tile in the tensors."""
    queries, full = q
    for consumer in gl.static_range(2):
        _copy(Q, head, row + consumer * ROWS, full.index(consumer), queries.index(consumer))
    _refill(K, shared, row, k, 0)
    for i in range(1, blocks):
        _refill(K, shared, row - i * KEYS, k, i)
        _refill(V, shared, row - (i - 1) * KEYS, v, i - 1)
    _refill(V, shared, row - (blocks - 1) * KEYS, v, blocks - 1)


@gluon.jit
def _refill(descriptor, head, row, ring, i):
    buffers, full, empty = ring
    STAGES: gl.constexpr = buffers.shape[0]
    slot = i % STAGES
    mbarrier.wait(empty.index(slot), (i // STAGES & 1) ^ 1)  # at first passes, as if the phase before had ended
    _copy(descriptor, head, row, full.index(slot), buffers.index(slot))


@gluon.jit
def _copy(descriptor, head, row, barrier, buffer):
    mbarrier.expect(barrier, descriptor.block_type.nbytes)
    tma.async_copy_global_to_shared(descriptor, [head, row, 0], barrier, buffer)


@gluon.jit
def _attend(consumer: gl.constexpr, q, k, v, given, WINDOW: gl.constexpr):
    """Write the output of one half of a tile."""
    OUT, LSE, start, length, first, count, heads, head, scale, window, whole, blocks = given
    queries, queries_full = q
    D: gl.constexpr = queries.shape[3]
    of_out: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    of_rows: gl.constexpr = gl.SliceLayout(1, of_out)
    factor = scale * LOG2E
    rows = first + consumer * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, SCORES))
    top = gl.full([ROWS], float("-inf"), gl.float32, gl.SliceLayout(1, SCORES))
    total = gl.full([ROWS], 0.0, gl.float32, gl.SliceLayout(1, SCORES))
    out = gl.full([ROWS, D], 0.0, gl.float32, of_out)
    mbarrier.wait(queries_full.index(consumer), 0)
    queries = queries.index(consumer).reshape([ROWS, D])

    scores = warpgroup_mma_wait(0, deps=[_multiply(queries, k, 0)])
    _release(k, 0)
    weights, top, total, _ = _weigh(scores, rows, first, top, total, factor, window, True, WINDOW)
    for cut in gl.static_range(2 if WINDOW else 1):
        for i in range(whole if cut else 1, blocks if cut else whole):
            scores = _multiply(queries, k, i)
            out = _add(weights, v, i - 1, out, of_out)
            scores = warpgroup_mma_wait(1, deps=[scores])
            _release(k, i)
            begin = first - i * KEYS
            weights, top, total, shrink = _weigh(scores, rows, begin, top, total, factor, window, cut, WINDOW)
            out = warpgroup_mma_wait(0, deps=[out])
            _release(v, i - 1)
            out = out * gl.convert_layout(shrink, of_rows, assert_trivial=True)[:, None]
    out = warpgroup_mma_wait(0, deps=[_add(weights, v, blocks - 1, out, of_out)])

    gl.store(LSE + head.to(gl.int64) * count + start + rows, top + gl.log2(total), mask=rows < length)
    part = 1.0 / gl.convert_layout(total, of_rows, assert_trivial=True)
    rows = gl.convert_layout(rows, of_rows, assert_trivial=True)
    places = ((start + rows).to(gl.int64) * heads + head) * D
    along = gl.arange(0, D, gl.SliceLayout(0, of_out))
    out = (out * part[:, None]).to(OUT.dtype.element_ty)
    gl.store(OUT + places[:, None] + along[None, :], out, mask=(rows < length)[:, None])


@gluon.jit
def _multiply(queries, k, i):
    """Begin to multiply the queries by the keys of a block."""
    buffers, full, _ = k
    STAGES: gl.constexpr = buffers.shape[0]
    D: gl.constexpr = buffers.shape[3]
    slot = i % STAGES
    mbarrier.wait(full.index(slot), i // STAGES & 1)
    keys = buffers.index(slot).reshape([KEYS, D]).permute((1, 0))
    zeros = gl.full([ROWS, KEYS], 0.0, gl.float32, SCORES)
    return warpgroup_mma(queries, keys, zeros, use_acc=False, is_async=True)


@gluon.jit
def _add(weights, v, i, out, layout: gl.constexpr):
    """Begin to add the weighted values of a block."""
    buffers, full, _ = v
    STAGES: gl.constexpr = buffers.shape[0]
    D: gl.constexpr = buffers.shape[3]
    slot = i % STAGES
    weights = gl.convert_layout(weights.to(buffers.dtype), gl.DotOperandLayout(0, layout, 2), assert_trivial=True)
    mbarrier.wait(full.index(slot), i // STAGES & 1)
    return warpgroup_mma(weights, buffers.index(slot).reshape([KEYS, D]), out, is_async=True)


@gluon.jit
def _release(ring, i):
    """Let the buffers of a block be copied over, as far as this group is concerned."""
    buffers, _, empty = ring
    STAGES: gl.constexpr = buffers.shape[0]
    mbarrier.arrive(empty.index(i % STAGES), count=1)


@gluon.jit
def _weigh(scores, rows, begin, top, total, factor, window, MASKED: gl.constexpr, WINDOW: gl.constexpr):
    """Return the weights of a block of keys, the new maxima and sums of the rows, and what the output shrinks by."""
    if MASKED:
        keys = begin + gl.arange(0, KEYS, gl.SliceLayout(0, SCORES))
        visible = keys[None, :] <= rows[:, None]
        if WINDOW:
            visible = visible & (rows[:, None] - keys[None, :] < window)
        scores = gl.where(visible, scores, float("-inf"))
    higher = gl.maximum(top, gl.max(scores, 1) * factor)
    weights = gl.exp2(scores * factor - higher[:, None])
    shrink = gl.exp2(top - higher)
    return weights, higher, total * shrink + gl.sum(weights, 1), shrink


def variants(architecture: int) -> list[Variant]:
    """Return the kernel as it is compiled for an architecture; it is for 90 alone."""
    chosen = [(dtype, size, window) for dtype in DTYPES for size in DEPTHS for window in (False, True)]
    return [_variant(*each) for each in chosen] if architecture == 90 else []


def _variant(dtype: torch.dtype, size: int, window: bool) -> Variant:
    from .compiling import Variant

    name = str(DTYPES[dtype])
    given: dict[str, Any] = {"OUT": f"*{name}", "LSE": "*fp32", "TILES": "*i32", "scale": "fp32"}
    for tensor, rows in (("Q", TILE // 2), ("K", TILE), ("V", TILE)):
        block = [1, rows, size]
        given[tensor] = f"tensordesc<{name}{block},{_layout(block, dtype)!r}>"
    given |= {"STAGES": DEPTHS[size], "WINDOW": window}
    arguments = {each: given.get(each, "i32") for each in forward.arg_names}
    return Variant(" ".join(["attention hopper", name, str(size), *["window"] * window]), forward, arguments)
