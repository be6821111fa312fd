"""RMS norm, gated units and rotary positions in Triton against their definitions in float64."""

from typing import Any

import pytest
import torch
from lmf import layers
from lmf.training.parts import differences
from lmf_kernels.glu import glu
from lmf_kernels.rms_norm import add_rms_norm, rms_norm
from lmf_kernels.rotary import rotary
from precisions import ALLOWED
from torch._subclasses.fake_tensor import FakeTensorMode

DTYPES = list(ALLOWED)


def random(*shape: int, dtype: torch.dtype = torch.float32, learned: bool = True) -> torch.Tensor:
    chance = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=chance).to(dtype).requires_grad_(learned)


def check(dtype: torch.dtype, kernel: Any, definition: Any, *inputs: Any, **more: Any) -> None:
    found = differences(kernel, definition, inputs, more, torch.float64)
    print(f"\n  {dtype}: {max(found.values()):.1e}")
    assert max(found.values()) <= ALLOWED[dtype], found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 3), (5, 8), (3, 7, 96), (2, 3, 2, 130), (2, 5000)], ids=str)
@pytest.mark.parametrize("offset", [False, True])
def test_rms_norm(offset, shape, dtype):
    inputs = random(*shape, dtype=dtype), random(shape[-1], dtype=dtype)
    check(dtype, rms_norm, layers.rms_norm, *inputs, 1e-6, offset=offset)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 3), (3, 7, 96), (2, 5000)], ids=str)
@pytest.mark.parametrize("offset", [False, True])
def test_add_rms_norm(offset, shape, dtype):
    x, residual = random(*shape, dtype=dtype), random(*shape, dtype=dtype).detach().flip(0).requires_grad_()
    check(dtype, add_rms_norm, layers.add_rms_norm, x, residual, random(shape[-1], dtype=dtype), 1e-6, offset=offset)


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16], ids=str)
def test_what_is_added_to_a_residual_of_full_precision_stays_full(low):
    x, residual, weight = random(5, 96, dtype=low), random(5, 96), random(96)
    found = add_rms_norm(x, residual, weight, 1e-6)
    assert {each.dtype for each in found} == {torch.float32}
    check(low, add_rms_norm, layers.add_rms_norm, x, residual, weight, 1e-6)


def test_a_frozen_weight_gets_no_gradient():
    x, residual, weight = random(5, 96), random(5, 96), random(96, learned=False)
    check(torch.float32, rms_norm, layers.rms_norm, x, weight, 1e-6)
    check(torch.float32, add_rms_norm, layers.add_rms_norm, x, residual, weight, 1e-6)


def test_the_gradient_of_the_weight_is_added_up_over_all_rows(monkeypatch):
    monkeypatch.setattr("lmf_kernels.rms_norm.PROGRAMS", 3)
    check(torch.float32, rms_norm, layers.rms_norm, random(10, 5), random(5), 1e-6)


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16], ids=str)
def test_rms_norm_of_low_precision_by_a_weight_of_full_precision_is_full(low):
    x, weight = random(5, 96, dtype=low), random(96)
    assert rms_norm(x, weight, 1e-6).dtype == torch.float32
    check(low, rms_norm, layers.rms_norm, x, weight, 1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1,), (3, 7, 96), (5, 2047), (2, 2049)], ids=str)
@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_glu(activation, shape, dtype):
    gate, up = random(*shape, dtype=dtype), random(*shape, dtype=dtype).detach().flip(0)
    check(dtype, glu, layers.glu, gate, up.requires_grad_(), activation)


@pytest.mark.filterwarnings("ignore:overflow")  # of an exponential whose reciprocal is 0
@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_glu_of_large_numbers_is_finite(activation):
    gate = torch.tensor([-1e4, -100.0, -20.0, 20.0, 100.0, 1e4]).requires_grad_()
    check(torch.float32, glu, layers.glu, gate, torch.ones(6).requires_grad_(), activation)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("heads", "shared", "size", "width"), [(1, 1, 2, 2), (3, 1, 16, 16), (4, 2, 80, 32), (5, 5, 96, 96)]
)
@pytest.mark.parametrize("dim", [1, 2])
def test_rotary(dim, heads, shared, size, width, dtype):
    q, k = (random(2, 7, count, size, dtype=dtype).detach() for count in (heads, shared))
    if dim == 1:
        q, k = q.transpose(1, 2), k.transpose(1, 2)  # as models lay them out, not contiguous
    angles = random(2, 7, width, learned=False)  # halves that differ
    angles = angles.cos().to(dtype), angles.sin().to(dtype)
    check(dtype, rotary, layers.rotary, q.requires_grad_(), k.requires_grad_(), *angles, dim)


def test_rotary_by_the_same_angles_in_all_rows():
    angles = random(1, 5, 16, learned=False)
    inputs = random(3, 2, 5, 16), random(3, 1, 5, 16), angles.cos(), angles.sin()
    check(torch.float32, rotary, layers.rotary, *inputs)


def test_what_is_not_contiguous_or_aligned_is_computed_alike():
    wide = random(40, 97, learned=False)
    x = wide[1:, 1:].requires_grad_()
    found = rms_norm(x, torch.ones(96), 1e-6)
    assert torch.allclose(found, layers.rms_norm(x, torch.ones(96), 1e-6), atol=1e-6)
    found = glu(wide[1:, 1:], wide[:-1, 1:], "silu")
    assert torch.allclose(found, layers.glu(wide[1:, 1:].contiguous(), wide[:-1, 1:].contiguous(), "silu"), atol=1e-6)


def test_nothing_is_computed_of_nothing():
    assert rms_norm(torch.ones(0, 8), torch.ones(8), 1e-6).shape == (0, 8)
    assert glu(torch.ones(0, 8), torch.ones(0, 8), "silu").shape == (0, 8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rms_norm(torch.ones(2, 8), torch.ones(4), 1e-6), r"a weight of \(4,\) for rows of 8"),
        (
            lambda: rms_norm(torch.ones(2, 8).double(), torch.ones(8), 1e-6),
            "gets float64; its kernel computes bfloat16",
        ),
        (
            lambda: rms_norm(torch.ones(1, 20000), torch.ones(20000), 1e-6),
            "rows of 20,000; its kernel takes from 1 up to 16,384",
        ),
        (
            lambda: add_rms_norm(torch.ones(2, 8), torch.ones(8), torch.ones(8), 1e-6),
            r"gets \(2, 8\) to add to \(8,\)",
        ),
        (lambda: glu(torch.ones(2), torch.ones(3), "silu"), r"\(2,\) and torch.float32 \(3,\)"),
        (lambda: glu(torch.ones(2), torch.ones(2).half(), "silu"), r"torch.float16 \(2,\)"),
        (lambda: glu(torch.ones(2), torch.ones(2), "relu"), "'relu'; its kernel computes silu and gelu"),
        (lambda: rotary(*[torch.ones(1, 1, 3, 8)] * 2, *[torch.ones(1, 3, 7)] * 2), "see lmf.layers.rotary"),
        (lambda: rotary(*[torch.ones(1, 1, 3, 8)] * 2, *[torch.ones(1, 3, 16)] * 2), r"angles of \(1, 3, 16\)"),
        (lambda: rotary(*[torch.ones(1, 1, 3, 8)] * 2, *[torch.ones(1, 4, 8)] * 2), r"angles of \(1, 4, 8\)"),
        (lambda: rotary(*[torch.ones(1, 1, 3, 8)] * 2, *[torch.ones(1, 3, 8)] * 2, 3), "unsqueeze_dim 3"),
    ],
)
def test_what_a_kernel_cannot_compute_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_where_kernels_do_not_run_the_plain_functions_compute(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    x, weight = random(3, 8), random(8)
    for found, plain in zip(add_rms_norm(x, x, weight, 1e-6), layers.add_rms_norm(x, x, weight, 1e-6), strict=True):
        assert torch.equal(found, plain)
    assert torch.equal(rms_norm(x, weight, 1e-6), layers.rms_norm(x, weight, 1e-6))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with FakeTensorMode():
        assert glu(torch.ones(3), torch.ones(3), "silu").shape == (3,)
