"""The forward pass for Hopper, on the CPU (``gluon_on_cpu``): the plain definition in float64, output and sums."""

import importlib.util
import itertools
import os
import subprocess
import sys
from pathlib import Path

import lmf_kernels.attention as portable
import lmf_kernels.attention_hopper as module
import pytest
import torch
from gluon_on_cpu import Deadlock, Kernel, Race
from lmf import layers
from lmf_kernels import device
from precisions import ALLOWED
from tinyrun import PLUGINS
from triton.runtime.jit import mangle_type

HALF = list(module.DTYPES)
RAGGED = (1, 7, 64, 65, 130, 300)


def bounds_of(lengths):
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def tensors(lengths, heads=2, others=1, size=64, dtype=torch.bfloat16):
    torch.manual_seed(0)
    return tuple(torch.randn(sum(lengths), each, size).to(dtype) for each in (heads, others, others))


def forward(given, lengths, scale=0.1, window=None):
    q = given[0]
    out = torch.full(q.shape, float("nan"), dtype=q.dtype)
    lse = torch.full((q.shape[1], len(q)), float("nan"))
    tiles = portable._tiles(bounds_of(lengths), len(q), module.TILE, False)
    assert module.possible(*given, None)
    module.launch(*given, out, lse, tiles, scale, window)
    return out, lse


def sums(q, k, bounds, scale, window):
    """The logarithms to base 2 of the sums of the rows; (H, N)."""
    found = []
    for start, end in itertools.pairwise(bounds):
        keys = k[start:end].repeat_interleave(q.shape[1] // k.shape[1], 1)
        scores = torch.einsum("ihd,jhd->hij", q[start:end], keys) * scale
        back = torch.arange(end - start)[:, None] - torch.arange(end - start)
        scores.masked_fill_((back < 0) | (back >= (window or end)), float("-inf"))
        found.append(scores.logsumexp(-1) / torch.tensor(2.0).log())
    return torch.cat(found, 1)


def compare(given, lengths, scale=0.1, window=None):
    out, lse = forward(given, lengths, scale, window)
    wide, bounds = [x.double() for x in given], bounds_of(lengths).tolist()
    expected = layers.attention(*wide, bounds, scale=scale, window=window)
    assert float((out.double() - expected).norm() / expected.norm()) < ALLOWED[out.dtype]
    assert float((lse - sums(*wide[:2], bounds, scale, window)).abs().max()) < 1e-5


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setattr(module, "forward", Kernel(module, "forward"))


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("size", module.DEPTHS)
@pytest.mark.parametrize("window", [None, 5, 200])
def test_output_and_sums_are_those_of_the_definition(window, size, dtype):
    compare(tensors(RAGGED, size=size, dtype=dtype), RAGGED, window=window)


@pytest.mark.parametrize("window", [None, 1, 127, 128, 129, 256, 300, 2**31 - 1])
def test_windows_and_more_blocks_than_there_is_room_for(window):
    for size in module.DEPTHS:
        compare(tensors((800,), 1, 1, size), (800,), window=window)


@pytest.mark.parametrize("lengths", [(1,), (127, 129), (128, 128), (0, 5, 0, 0, 33, 0)], ids=str)
def test_lengths_of_documents(lengths):
    compare(tensors(lengths), lengths)


@pytest.mark.parametrize(("heads", "others"), [(3, 3), (3, 1), (8, 2)])
def test_heads_share_keys(heads, others):
    compare(tensors((20, 140), heads, others), (20, 140))


def test_strides_of_any_kind():
    lengths = (40, 150)
    torch.manual_seed(0)
    fused = torch.randn(190, 8 * 64).bfloat16().unflatten(1, (8, 64))  # as one projection gives them
    compare(fused.split((4, 2, 2), 1), lengths)
    by_heads = torch.randn(8, 190, 64).bfloat16().transpose(0, 1)
    compare(by_heads.split((4, 2, 2), 1), lengths)


@pytest.mark.parametrize("seed", range(8))
def test_the_order_of_events_changes_nothing(seed, monkeypatch):
    given = tensors((400,), 1, 1, 128)
    expected = forward(given, (400,))
    monkeypatch.undo()
    monkeypatch.setattr(module, "forward", Kernel(module, "forward", seed + 1))
    assert all(torch.equal(a, b) for a, b in zip(forward(given, (400,)), expected, strict=True))


def test_a_document_does_not_reach_another():
    lengths, inside = (30, 150, 20), slice(30, 180)
    given = tensors(lengths)
    before = forward(given, lengths)
    for x, value in zip(given, (float("nan"), float("nan"), 1e30), strict=True):
        x[:30] = x[180:] = value
    after = forward(given, lengths)
    assert torch.equal(after[0][inside], before[0][inside])
    assert torch.equal(after[1][:, inside], before[1][:, inside])


def test_the_backward_pass_goes_on_from_it(monkeypatch):
    lengths = (1, 7, 70)
    given = [x.requires_grad_() for x in tensors(lengths)]
    slope = torch.randn(given[0].shape).bfloat16()
    wide = [x.detach().double().requires_grad_() for x in given]
    monkeypatch.setattr(portable, "_capability", lambda device: 90)
    used = []
    launch = module.launch
    monkeypatch.setattr(module, "launch", lambda *x: used.append(True) or launch(*x))
    load = PLUGINS.kernels["lmf-hopper"].load
    found = torch.autograd.grad(load()(*given, bounds_of(lengths), window=50), given, slope)
    expected = layers.attention(*wide, bounds_of(lengths).tolist(), window=50)
    for a, b in zip(found, torch.autograd.grad(expected, wide, slope.double()), strict=True):
        assert float((a.double() - b).norm() / b.norm()) < ALLOWED[torch.bfloat16]
    assert used


@pytest.mark.parametrize("what", ["softcap", "float32", "size", "empty", "begin", "stride", "expanded", "other GPU"])
def test_what_it_cannot_compute_is_computed_by_the_portable_kernel(what, monkeypatch):
    monkeypatch.setattr(portable, "_capability", lambda device: 0 if what == "other GPU" else 90)
    monkeypatch.setattr(portable, "_blocks", lambda *_: portable._Blocks(16, 16, 4, 1))
    monkeypatch.setattr(module, "launch", None)
    size = 80 if what == "size" else 64
    lengths = (0,) if what == "empty" else (5, 20)
    dtype = torch.float32 if what == "float32" else torch.bfloat16
    q, k, v = tensors(lengths, 2, 2, size, dtype)
    if what == "begin":
        q = torch.empty(q.numel() + 1, dtype=dtype)[1:].view(q.shape).copy_(q)
    elif what == "stride":
        k = torch.empty(25, 2, 65, dtype=dtype)[..., :64].copy_(k)
    elif what == "expanded":
        v = v[:, :1].expand(25, 2, 64)
    options = {"softcap": 5.0 if what == "softcap" else None}
    out = portable.attention(q, k, v, bounds_of(lengths), hopper=True, **options)
    expected = layers.attention(q.double(), k.double(), v.double(), bounds_of(lengths).tolist(), **options)
    assert float((out.double() - expected).norm()) <= ALLOWED[dtype] * float(expected.norm())


WAIT = "            scores = warpgroup_mma_wait(1, deps=[scores])\n"
FREE = "            _release(k, i)\n"
OUT = "            out = warpgroup_mma_wait(0, deps=[out])\n"
FREE_VALUES = "            _release(v, i - 1)\n"
EMPTY = "    mbarrier.wait(empty.index(slot), (i // STAGES & 1) ^ 1)"
FULL = "    mbarrier.wait(full.index(slot), i // STAGES & 1)\n"


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        (WAIT + FREE, FREE + WAIT, Race),
        (OUT + FREE_VALUES, FREE_VALUES + OUT, Race),
        (WAIT, WAIT.replace("(1", "(2"), Race),
        (FREE, "", Deadlock),
        (FREE_VALUES, "", Deadlock),
        (EMPTY, "", Race),
        (EMPTY, EMPTY.replace(" ^ 1", ""), Deadlock),
        (EMPTY, EMPTY.replace("STAGES", "1"), (Race, Deadlock)),
        (FULL, "", (Race, Deadlock, AssertionError)),
        (FULL, FULL.replace("STAGES", "1"), (Race, Deadlock)),
        ("keys_empty.index(slot), count=2", "keys_empty.index(slot), count=1", (Race, Deadlock)),
        ("values_empty.index(slot), count=2", "values_empty.index(slot), count=3", Deadlock),
        ("descriptor.block_type.nbytes", "2 * descriptor.block_type.nbytes", Deadlock),
        ("mask=rows < length", "mask=rows < length + 64", (Race, IndexError)),
        ("window, True, WINDOW", "window, False, WINDOW", AssertionError),
    ],
)
def test_a_mistake_is_found(old, new, error, tmp_path, monkeypatch):
    source = Path(module.__file__).read_text()
    assert old in source
    file = tmp_path / "mistaken.py"
    file.write_text(source.replace(old, new))
    spec = importlib.util.spec_from_file_location("mistaken", file)
    mistaken = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mistaken)
    monkeypatch.setattr(module, "forward", Kernel(mistaken, "forward"))
    with pytest.raises(error):
        compare(tensors((700, 70), 1, 1, 128), (700, 70))


def test_variants_are_what_is_launched(monkeypatch):
    monkeypatch.undo()
    assert not module.variants(80) and not module.variants(100)
    for variant in module.variants(90):
        assert list(variant.arguments) == variant.kernel.arg_names
        dtype = next(x for x in HALF if module.DTYPES[x].name in variant.name)
        x = torch.empty(3, 2, int(variant.name.split()[3]), dtype=dtype)
        assert mangle_type(module._descriptor(x, module.TILE // 2)) == variant.arguments["Q"]
        assert mangle_type(module._descriptor(x, module.TILE)) == variant.arguments["K"] == variant.arguments["V"]


def test_the_warps_of_a_group_meet_before_one_of_them_frees_what_all_have_read():
    script = """
from lmf_kernels import attention_hopper, compiling
print(compiling.build(attention_hopper.variants(90)[3], 90).asm["ptx"])
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    line = [sys.executable, "-c", script]
    code = subprocess.run(line, capture_output=True, text=True, env=environment, check=True).stdout
    before = [part.rpartition("wgmma.wait_group")[2] for part in code.split("mbarrier.arrive.shared")[:-1]]
    assert len(before) == 10 and all("bar.sync" in each for each in before)


def test_why_it_cannot_run_is_said(monkeypatch):
    why_not = PLUGINS.kernels["lmf-hopper"].why_not
    monkeypatch.setattr(device, "GPUS", ())
    assert why_not() == "there is no GPU here"
    monkeypatch.setattr(device, "no_gpu", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert why_not() == "A100 is not what it is made for (compute capability 9.0)"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert why_not() is None
    monkeypatch.setattr("triton.__version__", "3.5.1")
    assert why_not() == "it needs Triton 3.6 or 3.7, whose Gluon it is written in; 3.5.1 is here"
