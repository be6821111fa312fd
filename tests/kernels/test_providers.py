"""Kernels of others get what their definitions mean: seen by what they are called with, for there is no GPU here."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from inspect import signature
from types import ModuleType, SimpleNamespace
from typing import Any

import lmf_kernels.liger as liger
import lmf_kernels.providers as providers
import pytest
import torch
from lmf import LmfError, layers, losses
from lmf.testing import check_kernel
from tinyrun import PLUGINS

BOUNDS = (0, 3, 4, 9)


class OnGpu(torch.Tensor):
    """A tensor that says that it is on a GPU."""

    is_cuda = True  # type: ignore[assignment]


def given() -> list[Any]:
    torch.manual_seed(0)
    return [torch.randn(9, heads, 16) for heads in (4, 2, 2)]


def on_gpu(tensors: Sequence[torch.Tensor]) -> list[Any]:
    return [x.as_subclass(OnGpu) for x in tensors]


def by_definition(q: Any, k: Any, v: Any, ends: torch.Tensor, seen: tuple[int, int], **more: Any) -> torch.Tensor:
    """Attend as both packages say what their arguments mean."""
    assert ends.dtype == torch.int32 and seen[1] in (0, -1)
    window = None if seen[0] == -1 else seen[0] + 1
    return layers.attention(*(x.as_subclass(torch.Tensor) for x in (q, k, v)), ends.tolist(), window=window, **more)


@pytest.mark.parametrize("options", [{}, {"window": 2}, {"softcap": 3.0, "scale": 0.5}], ids=str)
def test_flash_attn_is_called_as_the_definition_says(options, monkeypatch):
    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None,
        causal=False, window_size=(-1, -1), softcap=0.0,
    ):  # fmt: skip
        assert causal and not dropout_p and (max_seqlen_q, max_seqlen_k) == (5, 5)
        assert torch.equal(cu_seqlens_q, cu_seqlens_k)
        return by_definition(q, k, v, cu_seqlens_q, window_size, scale=softmax_scale, softcap=softcap or None)

    module = ModuleType("flash_attn")
    module.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    check(providers.load_flash_attn(), options)


@pytest.mark.parametrize("options", [{}, {"window": 2, "scale": 0.5}], ids=str)
def test_that_of_torch_is_called_as_the_definition_says(options, monkeypatch):
    import torch.nn.attention.varlen as varlen

    def varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa):
        assert enable_gqa and (max_q, max_k) == (5, 5) and torch.equal(cu_seq_q, cu_seq_k)
        return by_definition(query, key, value, cu_seq_q, window_size, scale=scale)

    monkeypatch.setattr(varlen, "varlen_attn", varlen_attn)
    check(providers.load_varlen(), options)
    with pytest.raises(LmfError, match="has no softcap"):
        providers.load_varlen()(*on_gpu(given()), BOUNDS, softcap=3.0)


@pytest.mark.parametrize("bounds", [BOUNDS, (0, 3, 6, 9)], ids=["of any length", "of one length"])
def test_a_backend_of_torch_attends_alone(bounds):
    attention = providers.load_flash()  # which torch has for CPUs too, unlike cuDNN
    check(attention, {"scale": 0.5}, bounds)
    check(attention, {"window": 5}, bounds)  # as long as an example: no window
    with pytest.raises(RuntimeError, match="No viable backend"):
        providers.load_cudnn()(*on_gpu(given()), bounds)
    for option in ({"window": 2}, {"softcap": 3.0}):
        with pytest.raises(LmfError, match="no softcap and no window"):
            attention(*on_gpu(given()), bounds, **option)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("options", [{}, {"window": 2, "scale": 0.5}, {"softcap": 3.0}], ids=str)
def test_flex_attention_gets_the_mask_of_the_documents(options, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(torch, "compile", lambda function: function)  # what it computes uncompiled is the same
        attention = providers.load_flex()
    check(attention, options)


def check(attention: Any, options: dict[str, Any], bounds: Sequence[int] = BOUNDS) -> None:
    q, k, v = given()
    expected = layers.attention(q, k, v, bounds, **options)
    found = attention(*on_gpu((q, k, v)), bounds, **options)
    torch.testing.assert_close(found.as_subclass(torch.Tensor), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(attention(q, k, v, bounds, **options), expected)  # where there is no GPU


def taken(function: Callable[..., Any], like: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that checks that another one takes its arguments."""

    def call(*args: Any, **options: Any) -> Any:
        signature(like).bind(*args, **options)
        return function(*args, **options)

    return call


def random(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


def gradients(function: Callable[..., Any], given: Sequence[torch.Tensor], *more: Any, **options: Any) -> list[Any]:
    """Return what a function gives, and the gradients of its first arguments."""
    own = [x.detach().as_subclass(OnGpu).requires_grad_() for x in given]
    result = function(*own, *more, **options)
    result.sum().backward()
    return [x.detach().as_subclass(torch.Tensor) for x in (result, *(each.grad for each in own))]


def close(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"smoothing": 0.1, "z_loss": 0.01}, {"bias": torch.ones(50)}], ids=len)
def test_the_loss_of_liger_is_that_of_the_definition(options):
    """Computed by Liger's kernels in the interpreter."""
    inputs, targets = random((7, 32), (50, 32)), torch.arange(7)
    plain = gradients(losses.linear_cross_entropy, inputs, targets, **options)
    close(gradients(liger.linear_cross_entropy, inputs, targets, **options), plain)


@pytest.mark.parametrize("width", [32, 16])
def test_the_rotation_of_liger_is_that_of_the_definition(width):
    """Computed by Liger's kernels in the interpreter."""
    q, k = random((1, 4, 5, 32), (1, 2, 5, 32))
    angles = torch.randn(1, 5, width // 2).repeat(1, 1, 2)
    expected = layers.rotary(q, k, angles.cos(), angles.sin())
    found = liger.rotary(*on_gpu((q.detach().clone(), k.detach().clone())), angles.cos(), angles.sin())
    close([x.as_subclass(torch.Tensor) for x in found], [x.detach() for x in expected])


@pytest.mark.parametrize("offset", [False, True])
def test_the_norm_of_liger_is_called_as_the_definition_says(offset, monkeypatch):
    def apply(x, weight, eps, plus, casting, in_place):
        assert (plus, casting, in_place) == ((1.0, "gemma", False) if offset else (0.0, "llama", False))
        return layers.rms_norm(x, weight, eps, offset=bool(plus))

    real = liger.LigerRMSNormFunction.forward
    function = SimpleNamespace(apply=taken(apply, partial(real, None)))  # whose kernel the interpreter cannot run
    monkeypatch.setattr(liger, "LigerRMSNormFunction", function)
    inputs = random((3, 8), (8,))
    close(
        gradients(liger.rms_norm, inputs, 1e-5, offset=offset), gradients(layers.rms_norm, inputs, 1e-5, offset=offset)
    )


@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_the_units_of_liger_are_called_as_the_definition_says(activation, monkeypatch):
    for name, own in (("LigerSiLUMulFunction", "silu"), ("LigerGELUMulFunction", "gelu")):
        real = partial(getattr(liger, name).forward, None)
        apply = taken(partial(layers.glu, activation=own), real)
        monkeypatch.setattr(liger, name, SimpleNamespace(apply=apply))
    inputs = random((3, 8), (3, 8))
    close(gradients(liger.glu, inputs, activation), gradients(layers.glu, inputs, activation))


@pytest.mark.parametrize("options", [{}, {"softcap": 3.0}], ids=str)
def test_cut_cross_entropy_is_called_as_the_definition_says(options, monkeypatch):
    import cut_cross_entropy

    def compute(hidden, weight, targets, *, softcap, reduction, filter_eps):
        assert reduction == "sum" and filter_eps is None  # all gradients, also the smallest
        return losses.linear_cross_entropy(hidden, weight, targets, softcap=softcap)

    monkeypatch.setattr(
        cut_cross_entropy, "linear_cross_entropy", taken(compute, cut_cross_entropy.linear_cross_entropy)
    )
    inputs, targets = random((7, 32), (50, 32)), torch.arange(7)
    function = providers.load_cut_cross_entropy()
    plain = gradients(losses.linear_cross_entropy, inputs, targets, **options)
    close(gradients(function, inputs, targets, **options), plain)


def test_a_loss_that_another_has_not_is_refused():
    inputs, targets = on_gpu(random((7, 32), (50, 32))), torch.arange(7)
    weights = torch.ones(7)
    for options in ({"weights": weights}, {"scale": 2.0}):
        with pytest.raises(LmfError, match=f"without {next(iter(options))}; leave it out of --kernels"):
            liger.linear_cross_entropy(*inputs, targets, **options)
    for options in ({"weights": weights}, {"smoothing": 0.1}, {"bias": weights}):
        with pytest.raises(LmfError, match=f"cut-cross-entropy computes a loss without {next(iter(options))}"):
            providers.load_cut_cross_entropy()(*inputs, targets, **options)


OTHERS = [name for name, kernel in PLUGINS.kernels.items() if not kernel.name.startswith("lmf")]


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # by torch.compile
@pytest.mark.parametrize("name", [name for name in OTHERS if name != "flash-attn"])
def test_where_there_is_no_gpu_others_give_the_definition(name):
    kernel = PLUGINS.kernels[name]
    check_kernel(replace(kernel, why_not=lambda: None))
    assert not kernel.automatic


def test_why_they_cannot_run_is_said(monkeypatch):
    monkeypatch.setattr("lmf_kernels.device.GPUS", ())
    assert {PLUGINS.kernels[name].why_not() for name in OTHERS if name != "flash-attn"} == {"there is no GPU here"}
    monkeypatch.setattr("lmf_kernels.device.find_spec", lambda _: None)
    assert PLUGINS.kernels["liger-glu"].why_not() == "it needs the package liger-kernel: pip install liger-kernel"
    reason = PLUGINS.kernels["flash-attn"].why_not()
    assert reason and reason.startswith("it needs the package flash-attn, which is built with a CUDA compiler: pip")


def test_lmf_plugins_says_of_each_kernel_whether_it_runs():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    line = [sys.executable, "-m", "lmf_cli", "plugins"]
    printed = subprocess.run(line, capture_output=True, text=True, env=environment, check=True).stdout
    for name, kernel in PLUGINS.kernels.items():
        (row,) = (row for row in printed.splitlines() if row.startswith(f"{name} "))
        assert kernel.part in row and re.search(
            r"  (runs|there is no GPU .*|it needs .*|.* made for .*)$", row.rstrip()
        )
