"""From the way that was chosen to a shared model."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator

from ..plan import Plan
from ..specs import Criterion
from ..training.learner import Learner
from .copies import Copies
from .sharded import Sharded


def begin(way: str, **options: Any) -> Accelerator:
    """Meet the other processes, if there are any.

    Args:
        way: How the model is to be shared.
        options: Arguments of the accelerator.
    """
    for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
        os.environ.pop(name, None)  # the model is shared here
    if way != "ddp":
        for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1"}.items():
            os.environ.setdefault(name, str(value))
        os.environ.setdefault("MASTER_PORT", "0")
    return Accelerator(**options)


def kind_of(way: str) -> type[Copies]:
    """Return what shares a model in a way."""
    if way.startswith("zero"):
        from . import zero

        return {"zero1": zero.Zero1, "zero2": zero.Zero2, "zero3": zero.Zero3}[way]
    return {"ddp": Copies, "fsdp": Sharded}[way]


def share(
    plan: Plan,
    learner: Learner,
    criterion: Criterion,
    accelerator: Accelerator,
    build: Callable[[], torch.optim.Optimizer],
) -> Copies:
    """Share the model of a run among its processes; see ``Copies``."""
    kind = kind_of(plan.sharing.way)
    return kind(learner, criterion, plan.settings, plan.sharing, accelerator, build)
