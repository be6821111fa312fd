"""Optimizers whose state takes less memory than AdamW's two numbers of 32 bits a parameter."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from lmf import Optimizer, hookimpl

if TYPE_CHECKING:
    import torch

BETAS, EPS = (0.9, 0.999), 1e-8  # as in core's AdamW


@hookimpl
def lmf_optimizers() -> list[Optimizer]:
    return [
        Optimizer(
            name="adamw-8bit",
            summary="AdamW with moments of 8 bits (arXiv:2110.02861), by bitsandbytes.",
            build=_adamw_8bit,
            why_not=_no_bitsandbytes,
        ),
        Optimizer(
            name="adamw-rows",
            summary="AdamW, exact, without state for rows that never had a gradient.",
            build=_adamw_rows,
        ),
    ]


def _no_bitsandbytes() -> str | None:
    return None if find_spec("bitsandbytes") else "it needs the package bitsandbytes: pip install lmf-optimizers[8bit]"


def _adamw_8bit(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    from .eight_bit import AdamW8bit

    return AdamW8bit(groups, betas=BETAS, eps=EPS)


def _adamw_rows(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    from .rows import AdamWRows

    return AdamWRows(groups, betas=BETAS, eps=EPS)
