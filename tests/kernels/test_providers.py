"""Kernels of others get what their definitions mean: seen by what they are called with, for there is no GPU here."""

import os
import re
import subprocess
import sys
from types import ModuleType
from typing import Any

import lmf_kernels.providers as providers
import pytest
import torch
from lmf import layers
from tinyrun import PLUGINS

BOUNDS = (0, 3, 4, 9)


class OnGpu(torch.Tensor):
    """A tensor that says that it is on a GPU."""

    is_cuda = True  # type: ignore[assignment]


def given() -> list[Any]:
    torch.manual_seed(0)
    return [torch.randn(9, heads, 16) for heads in (4, 2, 2)]


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
    check(providers.load_torch(), options)
    with pytest.raises(ValueError, match="has no softcap"):
        providers.load_torch()(*(x.as_subclass(OnGpu) for x in given()), BOUNDS, softcap=3.0)


def check(attention: Any, options: dict[str, Any]) -> None:
    q, k, v = given()
    expected = layers.attention(q, k, v, BOUNDS, **options)
    found = attention(*(x.as_subclass(OnGpu) for x in (q, k, v)), BOUNDS, **options)
    assert torch.equal(found.as_subclass(torch.Tensor), expected)
    assert torch.equal(attention(q, k, v, BOUNDS, **options), expected)  # where there is no GPU


def test_why_they_cannot_run_is_said(monkeypatch):
    monkeypatch.setattr("lmf_kernels.device.GPUS", ())
    assert PLUGINS.kernels["torch-varlen"].why_not() == "there is no GPU here"
    reason = PLUGINS.kernels["flash-attn"].why_not()
    assert reason and reason.startswith("it needs the package flash-attn")


def test_lmf_plugins_says_of_each_kernel_whether_it_runs():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    line = [sys.executable, "-m", "lmf_cli", "plugins"]
    printed = subprocess.run(line, capture_output=True, text=True, env=environment, check=True).stdout
    for name, kernel in PLUGINS.kernels.items():
        (row,) = (row for row in printed.splitlines() if row.startswith(f"{name} "))
        assert kernel.part in row and re.search(
            r"  (runs|there is no GPU .*|it needs .*|.* older than .*)$", row.rstrip()
        )
