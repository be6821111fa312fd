"""Faster parts of models in Triton. Each is named after the plain function that defines it (``lmf.layers``)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from lmf import Command, Kernel, hookimpl

from .device import interpreted, no_gpu, why_not, why_not_hopper, why_not_others, why_not_torch

MODULES = ("attention", "attention_hopper", "rms_norm", "glu", "rotary", "cross_entropy", "adamw")  # what has kernels
UNTRIED = {"lmf-hopper"}  # what nobody has run on its GPU yet; it is measured only by its name
PARTS = {
    "attention": ("lmf", "Causal attention within packed documents (FlashAttention-2)."),
    "rms_norm": ("lmf-rms-norm", "RMS norm, in one pass over a row."),
    "add_rms_norm": ("lmf-add-rms-norm", "The sum of a residual connection and its RMS norm at once."),
    "glu": ("lmf-glu", "SwiGLU and GeGLU, which keep nothing but their arguments."),
    "rotary": ("lmf-rotary", "Rotary positions of all heads of a token at once."),
    "linear_cross_entropy": (
        "lmf-cross-entropy",
        "The loss of an output head, whose gradients take the place of logits.",
    ),
}
ATTENTION_OF_TORCH = {
    "torch-varlen": ("load_varlen", "Attention by torch.nn.attention.varlen, which has no softcap."),
    "torch-flash": ("load_flash", "Attention by PyTorch's FlashAttention-2, document by document."),
    "torch-cudnn": ("load_cudnn", "Attention by cuDNN, document by document."),
    "torch-flex": ("load_flex", "Attention by torch's FlexAttention, compiled for a mask of documents."),
}
LIGER = {
    "liger-rms-norm": ("rms_norm", "RMS norm by Liger-Kernel."),
    "liger-glu": ("glu", "SwiGLU and GeGLU by Liger-Kernel."),
    "liger-rotary": ("rotary", "Rotary positions by Liger-Kernel."),
    "liger-cross-entropy": ("linear_cross_entropy", "The loss of an output head by Liger-Kernel."),
}


@hookimpl
def lmf_commands() -> list[Command]:
    return [Command(name="bench", summary="Measure the kernels on this machine: lmf bench kernels.", build=_commands)]


def _commands() -> dict[str, Callable[..., None]]:
    from .bench.command import kernels

    return {"kernels": kernels}


@hookimpl
def lmf_kernels() -> list[Kernel]:
    """Return our kernels, and those of others, which are used only if they are asked for."""
    return [*_ours(), *_attention_of_others(), *_losses_and_layers_of_others()]


def _ours() -> list[Kernel]:
    return [
        Kernel(
            name=name,
            summary=summary,
            why_not=why_not,
            load=_loader(part.removeprefix("linear_").removeprefix("add_"), part),
            part=part,  # pyright: ignore[reportArgumentType]
            automatic=not interpreted(),  # the interpreter is for tests: a hundred thousand times as slow
        )
        for part, (name, summary) in PARTS.items()
    ] + [
        Kernel(
            name="lmf-hopper",
            summary="lmf with a forward pass for Hopper, which has not run on one yet (FlashAttention-3).",
            why_not=why_not_hopper,
            load=lambda: partial(_loader("attention", "attention")(), hopper=True),
        )
    ]


def _attention_of_others() -> list[Kernel]:
    flash_attn = Kernel(
        name="flash-attn",
        summary="Attention by the package flash-attn.",
        why_not=why_not_others("flash_attn", "flash-attn", "which is built with a CUDA compiler"),
        load=_called("providers", "load_flash_attn"),
    )
    return [flash_attn] + [
        Kernel(
            name=name,
            summary=summary,
            why_not=why_not_torch if name == "torch-varlen" else no_gpu,
            load=_called("providers", load),
        )
        for name, (load, summary) in ATTENTION_OF_TORCH.items()
    ]


def _losses_and_layers_of_others() -> list[Kernel]:
    liger = [
        Kernel(
            name=name,
            summary=summary,
            why_not=why_not_others("liger_kernel", "liger-kernel"),
            load=_loader("liger", part),
            part=part,  # pyright: ignore[reportArgumentType]
        )
        for name, (part, summary) in LIGER.items()
    ]
    apple = Kernel(
        name="cut-cross-entropy",
        summary="The loss of an output head by Apple's cut-cross-entropy, exact.",
        why_not=why_not_others("cut_cross_entropy", "cut-cross-entropy"),
        load=_called("providers", "load_cut_cross_entropy"),
        part="linear_cross_entropy",
    )
    return [*liger, apple]


def _loader(module: str, name: str) -> Callable[[], Any]:
    return lambda: getattr(import_module(f"{__name__}.{module}"), name)


def _called(module: str, name: str) -> Callable[[], Any]:
    return lambda: _loader(module, name)()()
