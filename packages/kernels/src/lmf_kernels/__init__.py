"""Faster parts of models in Triton. Each is named after the plain function that defines it (``lmf.layers``)."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from lmf import Kernel, hookimpl

from .device import interpreted, why_not, why_not_flash_attn, why_not_torch

MODULES = ("attention", "rms_norm", "glu", "rotary", "cross_entropy", "adamw")  # what has kernels
PARTS = {
    "attention": ("lmf", "Causal attention within packed documents (FlashAttention-2)."),
    "rms_norm": ("lmf-rms-norm", "RMS norm, in one pass over a row."),
    "glu": ("lmf-glu", "SwiGLU and GeGLU, which keep nothing but their arguments."),
    "rotary": ("lmf-rotary", "Rotary positions of all heads of a token at once."),
    "linear_cross_entropy": (
        "lmf-cross-entropy",
        "The loss of an output head, whose gradients take the place of logits.",
    ),
}


@hookimpl
def lmf_kernels() -> list[Kernel]:
    return [
        Kernel(
            name=name,
            summary=summary,
            why_not=why_not,
            load=_loader(part),
            part=part,  # pyright: ignore[reportArgumentType]
            automatic=not interpreted(),  # the interpreter is for tests: a hundred thousand times as slow
        )
        for part, (name, summary) in PARTS.items()
    ] + [
        Kernel(
            name="flash-attn",
            summary="Attention by the package flash-attn.",
            why_not=why_not_flash_attn,
            load=lambda: import_module(f"{__name__}.providers").load_flash_attn(),
        ),
        Kernel(
            name="torch-varlen",
            summary="Attention by torch.nn.attention.varlen, which has no softcap.",
            why_not=why_not_torch,
            load=lambda: import_module(f"{__name__}.providers").load_torch(),
        ),
    ]


def _loader(part: str) -> Any:
    return lambda: getattr(import_module(f"{__name__}.{part.removeprefix('linear_')}"), part)
