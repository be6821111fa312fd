"""Kernels of ``lmf_kernels.attention``.

A program takes a tile: BM rows of queries, or BN rows of keys, of one document and one head. A tile is three int32:
the first position of its document, the document's length, and the tile's own first row in it. A tile that begins
past the length is empty. Rows are counted within the document everywhere but in pointers.

A head of D0 + D1 elements is held in two parts, each a power of two wide, so that 80 is 64 + 16 and not 128. D1 is 0
where D0 is the whole head; the second part is then the first one again and is never used.

Logarithms are to base 2: ``exp2`` is the instruction that GPUs have.
"""

# pyright: reportGeneralTypeIssues=false
# (a kernel's call of another one never returns outside of Triton)

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-1e30)  # a maximum to begin with; finite, so that a row of which nothing is visible gives no NaN


@triton.jit(do_not_specialize=["count", "window"])
def forward(
    Q, K, V, OUT, LSE, TILES,
    stride_qn, stride_qh, stride_kn, stride_kh, stride_vn, stride_vh,
    count, heads, group, scale, window, softcap,
    BM: tl.constexpr, BN: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    """Write the output of a tile of queries, and the logarithms of the sums of its rows (LSE, heads by positions)."""
    program = tl.program_id(0)
    TILES += 3 * (program // heads)
    start = tl.load(TILES)
    length = tl.load(TILES + 1)
    first = tl.load(TILES + 2)
    if first >= length:
        return
    head = (program % heads).to(tl.int64)
    at, along = tl.arange(0, BM), tl.arange(0, BN)
    rows = first + at
    inside = rows < length
    q0, q1 = _load(Q + (start + first).to(tl.int64) * stride_qn + head * stride_qh, at, stride_qn, inside, D0, D1)
    out0 = tl.zeros([BM, D0], tl.float32)
    out1 = tl.zeros([BM, D1 if D1 else 16], tl.float32)
    total = tl.zeros([BM], tl.float32)
    top = tl.full([BM], LOWEST, tl.float32)
    low, high = _keys_of(first, length, window, BM, BN, WINDOW)
    K += (start + low).to(tl.int64) * stride_kn + head // group * stride_kh
    V += (start + low).to(tl.int64) * stride_vn + head // group * stride_vh
    factor = _factor(scale, softcap, SOFTCAP)
    for begin in range(low, high, BN):
        keys = begin + along
        k0, k1 = _load(K, along, stride_kn, keys < length, D0, D1)
        scores = _cap(_product(q0, q1, k0, k1, D1), scale, softcap, SOFTCAP)
        if _partial(first, begin, window, BM, BN, WINDOW):
            scores = tl.where(_visible(rows[:, None], keys[None, :], window, WINDOW), scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1) * factor)
        p = tl.exp2(scores * factor - higher[:, None])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(p, 1)
        v0, v1 = _load(V, along, stride_vn, keys < length, D0, D1)
        p = p.to(v0.dtype)
        out0 = tl.dot(p, v0, out0 * shrink[:, None], input_precision="ieee")
        if D1:
            out1 = tl.dot(p, v1, out1 * shrink[:, None], input_precision="ieee")
        top = higher
        K += BN * stride_kn
        V += BN * stride_vn
    tl.store(LSE + head * count + start + rows, top + tl.log2(total), mask=inside)
    stride = heads * (D0 + D1)
    OUT += (start + first).to(tl.int64) * stride + head * (D0 + D1)
    part = 1.0 / total[:, None]
    _store(OUT, out0 * part, out1 * part, at, stride, inside, D0, D1)


@triton.jit(do_not_specialize=["count", "window"])
def backward_queries(
    Q, K, V, OUT, DOUT, LSE, DELTA, DQ, TILES,
    stride_qn, stride_qh, stride_kn, stride_kh, stride_vn, stride_vh, stride_gn, stride_gh,
    count, heads, group, scale, window, softcap,
    BM: tl.constexpr, BN: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    """Write the gradient of a tile of queries, and the sums of ``OUT * DOUT`` over its rows (DELTA, as LSE)."""
    program = tl.program_id(0)
    TILES += 3 * (program // heads)
    start = tl.load(TILES)
    length = tl.load(TILES + 1)
    first = tl.load(TILES + 2)
    if first >= length:
        return
    head = (program % heads).to(tl.int64)
    at, along = tl.arange(0, BM), tl.arange(0, BN)
    rows = first + at
    inside = rows < length
    begin = (start + first).to(tl.int64)
    stride = heads * (D0 + D1)
    g0, g1 = _load(DOUT + begin * stride_gn + head * stride_gh, at, stride_gn, inside, D0, D1)
    o0, o1 = _load(OUT + begin * stride + head * (D0 + D1), at, stride, inside, D0, D1)
    delta = tl.sum(o0.to(tl.float32) * g0.to(tl.float32), 1)
    if D1:
        delta += tl.sum(o1.to(tl.float32) * g1.to(tl.float32), 1)
    tl.store(DELTA + head * count + start + rows, delta, mask=inside)
    lse = tl.load(LSE + head * count + start + rows, mask=inside, other=0.0)
    q0, q1 = _load(Q + begin * stride_qn + head * stride_qh, at, stride_qn, inside, D0, D1)
    dq0 = tl.zeros([BM, D0], tl.float32)
    dq1 = tl.zeros([BM, D1 if D1 else 16], tl.float32)
    low, high = _keys_of(first, length, window, BM, BN, WINDOW)
    K += (start + low).to(tl.int64) * stride_kn + head // group * stride_kh
    V += (start + low).to(tl.int64) * stride_vn + head // group * stride_vh
    factor = _factor(scale, softcap, SOFTCAP)
    for begin in range(low, high, BN):
        keys = begin + along
        k0, k1 = _load(K, along, stride_kn, keys < length, D0, D1)
        v0, v1 = _load(V, along, stride_vn, keys < length, D0, D1)
        scores = _cap(_product(q0, q1, k0, k1, D1), scale, softcap, SOFTCAP)
        p = tl.exp2(scores * factor - lse[:, None])
        if _partial(first, begin, window, BM, BN, WINDOW):
            p = tl.where(_visible(rows[:, None], keys[None, :], window, WINDOW), p, 0.0)
        ds = p * (_product(g0, g1, v0, v1, D1) - delta[:, None])
        if SOFTCAP:
            ds *= 1.0 - scores * scores
        ds = ds.to(k0.dtype)
        dq0 = tl.dot(ds, k0, dq0, input_precision="ieee")
        if D1:
            dq1 = tl.dot(ds, k1, dq1, input_precision="ieee")
        K += BN * stride_kn
        V += BN * stride_vn
    DQ += (start + first).to(tl.int64) * stride + head * (D0 + D1)
    _store(DQ, dq0 * scale, dq1 * scale, at, stride, inside, D0, D1)


@triton.jit(do_not_specialize=["count", "window"])
def backward_keys(
    Q, K, V, DOUT, LSE, DELTA, DK, DV, TILES,
    stride_qn, stride_qh, stride_kn, stride_kh, stride_vn, stride_vh, stride_gn, stride_gh,
    count, heads, group, scale, window, softcap,
    BM: tl.constexpr, BN: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    """Write the gradients of a tile of keys and of its values; ``heads`` counts those of keys.

    The heads of queries that share them are gone through one after another, so that nothing is added up by atomics,
    and in one loop, whose loads then need to be waited for only once.
    Scores are transposed: keys by queries. Rows past the document are loaded as zeros, and what they add is zero.
    """
    program = tl.program_id(0)
    TILES += 3 * (program // heads)
    start = tl.load(TILES)
    length = tl.load(TILES + 1)
    first = tl.load(TILES + 2)
    if first >= length:
        return
    head = (program % heads).to(tl.int64)
    at, along = tl.arange(0, BN), tl.arange(0, BM)
    keys = first + at
    inside = keys < length
    here = (start + first).to(tl.int64)
    k0, k1 = _load(K + here * stride_kn + head * stride_kh, at, stride_kn, inside, D0, D1)
    v0, v1 = _load(V + here * stride_vn + head * stride_vh, at, stride_vn, inside, D0, D1)
    dk0 = tl.zeros([BN, D0], tl.float32)
    dk1 = tl.zeros([BN, D1 if D1 else 16], tl.float32)
    dv0 = tl.zeros([BN, D0], tl.float32)
    dv1 = tl.zeros([BN, D1 if D1 else 16], tl.float32)
    factor = _factor(scale, softcap, SOFTCAP)
    high = tl.minimum(first + BN - 1 + window, length) if WINDOW else length
    blocks = tl.cdiv(high - first, BM)
    back = (blocks - 1).to(tl.int64) * BM
    Q += here * stride_qn + head * group * stride_qh
    DOUT += here * stride_gn + head * group * stride_gh
    sums = head * group * count + start
    begin = first
    for _ in range(blocks * group):
        rows = begin + along
        q0, q1 = _load(Q, along, stride_qn, rows < length, D0, D1)
        lse = tl.load(LSE + sums + rows, mask=rows < length, other=0.0)
        scores = _cap(_product(k0, k1, q0, q1, D1), scale, softcap, SOFTCAP)
        p = tl.exp2(scores * factor - lse[None, :])
        if _partial(begin, first, window, BM, BN, WINDOW):
            p = tl.where(_visible(rows[None, :], keys[:, None], window, WINDOW), p, 0.0)
        g0, g1 = _load(DOUT, along, stride_gn, rows < length, D0, D1)
        dv0 = tl.dot(p.to(g0.dtype), g0, dv0, input_precision="ieee")
        if D1:
            dv1 = tl.dot(p.to(g1.dtype), g1, dv1, input_precision="ieee")
        delta = tl.load(DELTA + sums + rows, mask=rows < length, other=0.0)
        ds = p * (_product(v0, v1, g0, g1, D1) - delta[None, :])
        if SOFTCAP:
            ds *= 1.0 - scores * scores
        ds = ds.to(q0.dtype)
        dk0 = tl.dot(ds, q0, dk0, input_precision="ieee")
        if D1:
            dk1 = tl.dot(ds, q1, dk1, input_precision="ieee")
        last = begin + BM >= high
        Q += tl.where(last, stride_qh - back * stride_qn, BM * stride_qn)
        DOUT += tl.where(last, stride_gh - back * stride_gn, BM * stride_gn)
        sums += tl.where(last, count, 0)
        begin = tl.where(last, first, begin + BM)
    stride = heads * (D0 + D1)
    here = here * stride + head * (D0 + D1)
    _store(DK + here, dk0 * scale, dk1 * scale, at, stride, inside, D0, D1)
    _store(DV + here, dv0, dv1, at, stride, inside, D0, D1)


@triton.jit
def _keys_of(first, length, window, BM: tl.constexpr, BN: tl.constexpr, WINDOW: tl.constexpr):
    """Return where the keys begin and end of which the queries from ``first`` on see any."""
    low = tl.maximum(first - window + 1, 0) // BN * BN if WINDOW else first * 0
    return low, tl.minimum(first + BM, length)


@triton.jit
def _partial(row, key, window, BM: tl.constexpr, BN: tl.constexpr, WINDOW: tl.constexpr):
    """Tell whether there is a key in the tile at ``key`` which not all queries of the tile at ``row`` see."""
    partial = key + BN - 1 > row
    if WINDOW:
        partial = partial | (row + BM - 1 - key >= window)
    return partial


@triton.jit
def _visible(rows, keys, window, WINDOW: tl.constexpr):
    visible = keys <= rows
    if WINDOW:
        visible = visible & (rows - keys < window)
    return visible


@triton.jit
def _load(base, at, stride, inside, D0: tl.constexpr, D1: tl.constexpr):
    """Return both parts of rows of a matrix, zeros where they are not inside."""
    rows = base + at[:, None] * stride
    x0 = tl.load(rows + tl.arange(0, D0)[None, :], mask=inside[:, None], other=0.0)
    x1 = x0
    if D1:
        x1 = tl.load(rows + D0 + tl.arange(0, D1)[None, :], mask=inside[:, None], other=0.0)
    return x0, x1


@triton.jit
def _store(base, x0, x1, at, stride, inside, D0: tl.constexpr, D1: tl.constexpr):
    rows = base + at[:, None] * stride
    tl.store(rows + tl.arange(0, D0)[None, :], x0.to(base.dtype.element_ty), mask=inside[:, None])
    if D1:
        tl.store(rows + D0 + tl.arange(0, D1)[None, :], x1.to(base.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _product(a0, a1, b0, b1, D1: tl.constexpr):
    """Return ``a @ b.T``."""
    result = tl.dot(a0, tl.trans(b0), input_precision="ieee")
    if D1:
        result = tl.dot(a1, tl.trans(b1), result, input_precision="ieee")
    return result


@triton.jit
def _factor(scale, softcap, SOFTCAP: tl.constexpr):
    """Return what makes of a result of ``_cap`` the logarithm to base 2 of a weight."""
    return (softcap if SOFTCAP else scale) * LOG2E


@triton.jit
def _cap(products, scale, softcap, SOFTCAP: tl.constexpr):
    """Return the products, or ``tanh(products * scale / softcap)``."""
    if SOFTCAP:
        return 1.0 - 2.0 / (1.0 + tl.exp2(products * (2.0 * LOG2E * scale / softcap)))
    return products
