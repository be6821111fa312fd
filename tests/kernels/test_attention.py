"""Packed attention: the plain definition in float64, document by document, and every gradient."""

import functools
import gc

import pytest
import torch
from lmf import layers
from lmf_kernels import attention as module
from lmf_kernels.attention import attention, check_bounds
from precisions import ALLOWED

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy of rows past a document, which see nothing
RAGGED = (1, 7, 64, 65, 130)


def bounds_of(lengths):
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def tensors(lengths, heads=2, others=1, size=16, dtype=torch.float32):
    torch.manual_seed(0)
    count = sum(lengths)
    return tuple(torch.randn(count, each, size).to(dtype).requires_grad_() for each in (heads, others, others))


def reference(q, k, v, lengths, scale=None, window=None, softcap=None):
    """The attention of each document by itself."""
    group = q.shape[1] // k.shape[1]
    out = []
    for a, b, c in zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True):
        scores = torch.einsum("ihd,jhd->hij", a, b.repeat_interleave(group, 1))
        scores = scores * (q.shape[-1] ** -0.5 if scale is None else scale)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        back = torch.arange(len(a))[:, None] - torch.arange(len(a))
        seen = (back >= 0) & (back < (len(a) if window is None else window))
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        out.append(torch.einsum("hij,jhd->ihd", weights, c.repeat_interleave(group, 1)))
    return torch.cat(out)


def results(function, given, slope):
    out = function(*given)
    return [out.detach(), *torch.autograd.grad(out, given, slope)]


def distance(found, expected):
    return float((found.double() - expected).norm() / expected.norm())


def compare(given, lengths, **options):
    """Check the output and the gradients, in the order of q, k, v."""
    dtype = given[0].dtype
    slope = torch.randn(given[0].shape).to(dtype)
    found = results(lambda *x: attention(*x, bounds_of(lengths), **options), given, slope)
    wide = [x.detach().double().requires_grad_() for x in given]
    expected = results(lambda *x: reference(*x, list(lengths), **options), wide, slope.double())
    for name, a, b in zip(("out", "q", "k", "v"), found, expected, strict=True):
        assert a.dtype == dtype and a.shape == b.shape and bool(a.isfinite().all()), name
        if float(b.norm()) < 1e-9:  # what nothing depends on, as q where each token sees only itself
            assert float(a.double().norm()) < ALLOWED[dtype], name
        else:
            assert distance(a, b) < ALLOWED[dtype], name


MANY = {"window": 70, "softcap": 30.0, "scale": 0.5}


@pytest.mark.parametrize(
    "options", [{}, {"window": 5}, {"window": 64}, {"window": 100}, {"softcap": 2.0}, MANY], ids=str
)
def test_values_and_gradients_are_those_of_the_definition(options):
    compare(tensors(RAGGED), RAGGED, **options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [{}, MANY], ids=str)
def test_halves_of_precision(options, dtype):
    compare(tensors(RAGGED, dtype=dtype), RAGGED, **options)


@pytest.mark.parametrize("dtype", ALLOWED, ids=str)
@pytest.mark.parametrize("size", [32, 48, 64, 80, 96, 128, 256])
def test_sizes_of_a_head(size, dtype):
    lengths = (40, 3)
    compare(tensors(lengths, size=size, dtype=dtype), lengths)


@pytest.mark.parametrize("lengths", [(1,), (97,), (64,), (1, 2, 3, 1, 1, 2, 3), (0, 5, 0, 0, 33, 0)], ids=str)
def test_lengths_of_documents(lengths):
    compare(tensors(lengths), lengths)


@pytest.mark.parametrize(("heads", "others"), [(3, 3), (3, 1), (8, 2)])
def test_heads_share_keys(heads, others):
    lengths = (20, 40)
    compare(tensors(lengths, heads, others), lengths)


@pytest.mark.parametrize("blocks", [(16, 16), (16, 64), (64, 16), (32, 128)], ids=str)
@pytest.mark.parametrize("window", [None, 1, 40])
def test_blocks_of_any_shape(blocks, window, monkeypatch):
    monkeypatch.setattr(module, "_blocks", lambda *_: module._Blocks(*blocks, 4, 1))
    lengths = (90, 21)
    compare(tensors(lengths), lengths, window=window)


def test_strides_of_any_kind():
    lengths = (40, 30)
    count = sum(lengths)
    torch.manual_seed(0)
    q = torch.randn(1, 4, count, 32)[0].transpose(0, 1)  # as models lay them out
    k = torch.randn(count, 1, 32).expand(count, 2, 32)
    v = torch.randn(count * 2 * 32 + 3)[3:].view(count, 2, 32)  # begins where nothing is aligned
    turned = torch.randn(32, count, 2).permute(1, 2, 0)
    for given in ((q, k, v), (q, turned, turned), (turned, turned, v)):
        compare(tuple(x.detach().requires_grad_() for x in given), lengths)


def test_slopes_of_any_strides():
    lengths = (20, 13)
    given = tensors(lengths)
    found = torch.autograd.grad(attention(*given, bounds_of(lengths)).sum(), given)
    wide = [x.detach().double().requires_grad_() for x in given]
    expected = torch.autograd.grad(reference(*wide, list(lengths)).sum(), wide)
    assert distance(found[2], expected[2]) < 1e-5
    assert float((found[0].double() - expected[0]).abs().max()) < 1e-5  # nearly zero, all of them


def test_everything_is_written(monkeypatch):
    lengths = (33, 1, 90)
    for made in (torch.empty, torch.empty_like):
        poisoned = functools.partial(lambda function, *a, **k: function(*a, **k).fill_(float("nan")), made)
        monkeypatch.setattr(torch, made.__name__, poisoned)
    given = tensors(lengths)
    for each in results(lambda *x: attention(*x, bounds_of(lengths)), given, torch.ones_like(given[0])):
        assert not each.isnan().any()


@pytest.mark.parametrize("value", [3.0, float("inf"), float("nan")])
def test_a_document_does_not_reach_another(value):
    lengths = (30, 50, 20)
    inside = slice(30, 80)
    bounds = bounds_of(lengths)
    given = tensors(lengths)
    slope = torch.randn(given[0].shape)
    before = results(lambda *x: attention(*x, bounds), given, slope)
    with torch.no_grad():
        for x in (*given, slope):
            x[:30] = value
            x[80:] = value
    after = results(lambda *x: attention(*x, bounds), given, slope)
    assert all(torch.equal(a[inside], b[inside]) for a, b in zip(before, after, strict=True))


def test_a_window_wider_than_everything():
    given = tensors((7, 65))
    assert torch.equal(attention(*given, bounds_of((7, 65)), window=2**31 - 1), attention(*given, bounds_of((7, 65))))


def test_twice_the_same():
    lengths = (7, 65)
    given = tensors(lengths, 4, 2)
    slope = torch.randn(given[0].shape)
    first, second = (results(lambda *x: attention(*x, bounds_of(lengths)), given, slope) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_scale_is_a_factor_of_q():
    lengths = (40,)
    q, k, v = tensors(lengths)
    scaled, plain = attention(q, k, v, bounds_of(lengths), scale=0.75), attention(3 * q, k, v, bounds_of(lengths))
    assert torch.allclose(scaled, plain, atol=1e-6)
    slope = torch.randn(q.shape)
    by_scaled, by_plain = (torch.autograd.grad(out, (q, k, v), slope) for out in (scaled, plain))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(by_scaled, by_plain, strict=True))


def test_a_step_along_the_gradient():
    """The change of a function of the output is what the gradients say, by finite differences."""
    lengths = (9, 25)
    given = tensors(lengths)
    slope, *steps = (torch.randn(x.shape) for x in (given[0], *given))

    def along(size):
        moved = (x.detach() + size * step for x, step in zip(given, steps, strict=True))
        return float((attention(*moved, bounds_of(lengths), softcap=3.0).double() * slope).sum())

    out = attention(*given, bounds_of(lengths), softcap=3.0)
    gradients = torch.autograd.grad(out, given, slope)
    expected = sum(float((a * b).sum()) for a, b in zip(gradients, steps, strict=True))
    assert (along(1e-2) - along(-1e-2)) / 2e-2 == pytest.approx(expected, rel=1e-2)


def test_gradients_of_what_is_asked_for():
    q, k, v = tensors((10,))
    attention(q.detach(), k, v.detach(), bounds_of((10,))).sum().backward()
    assert q.grad is None and v.grad is None and k.grad is not None


def test_no_positions():
    q = torch.empty(0, 2, 16, requires_grad=True)
    out = attention(q, q, q, torch.tensor([0, 0], dtype=torch.int32))
    out.sum().backward()
    assert out.shape == (0, 2, 16) and q.grad is not None and q.grad.shape == q.shape


def test_tiles_hold_every_position_once_and_the_longest_come_first():
    for keys in (False, True):
        tiles = module._tiles(bounds_of((0, 1, 100, 32, 0, 33, 7)), 173, 32, keys)
        assert tiles.dtype == torch.int32 and tiles.shape == (173 // 32 + 7, 3) and tiles.is_contiguous()
        real = [(start, length, first) for start, length, first in tiles.tolist() if first < length]
        covered = [start + i for start, length, first in real for i in range(first, min(first + 32, length))]
        assert sorted(covered) == list(range(173))
        work = [length - first if keys else first for _, length, first in real]
        assert work == sorted(work, reverse=True)
        assert len(real) == 1 + 4 + 1 + 2 + 1
        assert all(first < length for _, length, first in tiles[: len(real)].tolist())


def test_tiles_are_made_once_for_a_batch_and_forgotten_with_it():
    bounds = bounds_of((20, 30))
    tiles = module._tiles(bounds, 50, 32, False)
    assert module._tiles(bounds, 50, 32, False) is tiles
    assert module._tiles(bounds.clone(), 50, 32, False) is not tiles
    gc.collect()
    before = len(module._kept)
    del bounds
    gc.collect()
    assert len(module._kept) == before - 1


GOOD = {
    "q": torch.zeros(8, 4, 64),
    "k": torch.zeros(8, 2, 64),
    "v": torch.zeros(8, 2, 64),
    "bounds": torch.tensor([0, 8], dtype=torch.int32),
}


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"q": torch.zeros(8, 64)}, r"shapes \(8, 64\), .* must be \(N, H, D\)"),
        ({"k": torch.zeros(7, 2, 64)}, r"shapes .*\(7, 2, 64\)"),
        ({"v": torch.zeros(8, 2, 32)}, r"shapes .*\(8, 2, 32\)"),
        ({"q": torch.zeros(8, 3, 64)}, "3 heads of queries cannot share 2 of keys"),
        ({name: torch.zeros(8, 2, 72) for name in "qkv"}, "head size 72 .* power of two from 16 to 256"),
        ({name: torch.zeros(8, 2, 8) for name in "qkv"}, "head size 8 "),
        ({name: torch.zeros(8, 2, 512) for name in "qkv"}, "head size 512 "),
        ({name: torch.zeros(8, 2, 0) for name in "qkv"}, "head size 0 "),
        ({"q": torch.zeros(8, 4, 64, dtype=torch.float64)}, "dtypes torch.float64, torch.float32"),
        ({name: torch.zeros(8, 2, 64, dtype=torch.float64) for name in "qkv"}, "must be bfloat16, float16 or float32"),
        ({"bounds": torch.tensor([0, 8])}, "bounds are torch.int64 .* int32"),
        ({"bounds": torch.tensor([0], dtype=torch.int32)}, r"shape \(1,\)"),
        ({"bounds": torch.tensor([[0, 8]], dtype=torch.int32)}, r"shape \(1, 2\)"),
        ({"bounds": torch.zeros(2, dtype=torch.int32, device="meta")}, "cpu, cpu, cpu, meta; they must be on one"),
        ({"scale": 0.0}, "scale is 0.0; it must be positive"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"window": 0}, "window is 0; it must be a whole number from 1 on"),
        ({"window": 2.5}, "window is 2.5"),
        ({"softcap": float("inf")}, "softcap is inf"),
        ({"softcap": -1.0}, "softcap is -1.0; it must be positive"),
    ],
    ids=lambda each: "" if isinstance(each, dict) else None,
)
def test_what_cannot_be(wrong, text):
    with pytest.raises(ValueError, match=text):
        attention(**GOOD | wrong)


def test_where_kernels_do_not_run_the_definition_computes(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    given = tensors((5, 3))
    expected = layers.attention(*given, (0, 5, 8), window=2)
    assert torch.equal(attention(*given, (0, 5, 8), window=2), expected)
    assert torch.equal(attention(*given, bounds_of((5, 3)), window=2), expected)


def test_bounds_can_be_checked():
    check_bounds(bounds_of((3, 0, 5)), 8)
    for values, text in (
        ((1, 8), "from 1 to 8; they must go from 0"),
        ((0, 7), "from 0 to 7; .* 8 positions"),
        ((0, 5, 4, 8), "must not fall, as they do from 5 to 4 at 2"),
    ):
        with pytest.raises(ValueError, match=text):
            check_bounds(torch.tensor(values, dtype=torch.int32), 8)


@pytest.mark.parametrize("architecture", [75, 80, 86, 90, 100, 103, 120])
def test_every_head_size_has_blocks(architecture):
    sizes = [size for size in range(1, 600) if module._possible(size)]
    assert sizes == [16, 32, 48, 64, 80, 96, 128, 144, 160, 192, 256]
    for variant in module.variants(architecture):
        assert set(variant.arguments) == set(variant.kernel.arg_names)
    for kernel in module.KERNELS:
        for dtype in ALLOWED:
            for size in sizes:
                blocks = module._blocks(kernel, size, dtype, architecture)
                assert blocks.rows % 16 == 0 and blocks.keys % 16 == 0


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ((0, 3, 7), "from 0 to 7; they must go from 0 to the 8 positions"),
        ((0, 3, 12), "from 0 to 12"),
        ((2, 8), "from 2 to 8"),
        ((0, 5, 3, 8), "must not fall, as they do from 5 to 3"),
        ((0, 4.5, 8), "bounds are torch.float32"),
        ((0,), r"of shape \(1,\)"),
    ],
)
def test_lengths_that_do_not_add_up_are_refused(bounds, message):
    given = tensors((8,))
    with pytest.raises(ValueError, match=message):
        attention(*given, bounds)
    if not any(isinstance(bound, float) for bound in bounds):
        with pytest.raises(ValueError, match=message):
            attention(*given, torch.tensor(bounds, dtype=torch.int32))
