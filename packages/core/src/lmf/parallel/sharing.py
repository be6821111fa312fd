"""From the way that was chosen to a shared model."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch.distributed.rendezvous import rendezvous

from ..errors import LmfError
from ..plan import Plan
from ..specs import Criterion
from ..training.learner import Learner
from .copies import Copies
from .sharded import Sharded


def begin(plan: Plan, **options: Any) -> Accelerator:
    """Meet the other processes, if there are any.

    Args:
        plan: The run.
        options: Arguments of the accelerator.

    Raises:
        LmfError: The others do not come.
    """
    environ = os.environ
    for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
        environ.pop(name, None)  # the model is shared here
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    if plan.sharing.way != "ddp":
        for name, value in alone.items():
            environ.setdefault(name, value)
    several = "LOCAL_RANK" in environ
    cpu = several and not torch.accelerator.is_available()
    if cpu:
        environ.setdefault("DS_ACCELERATOR", "cpu")
    patience = timedelta(seconds=plan.settings.timeout)
    waiting = InitProcessGroupKwargs(timeout=patience)
    if plan.sharing.offload and not cpu:
        waiting.backend = "cuda:nccl,cpu:gloo"  # what is kept in main memory is added up there
    try:
        if environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
            _meet_again(environ["TORCHELASTIC_RESTART_COUNT"], patience, cpu)
        found = Accelerator(cpu=cpu, kwargs_handlers=[waiting] if several else None, **options)
    except (dist.DistError, TimeoutError) as error:
        reason = " ".join(str(error).split())[:200]
        raise LmfError(f"The processes of the run did not meet within {plan.settings.timeout} s: {reason}") from None
    count = int(environ.get("WORLD_SIZE", "1"))
    if found.num_processes != count:
        raise LmfError(f"{count} processes were started, but accelerate sees {found.num_processes}; try lmf launch.")
    kind_of(plan.sharing.way).check(plan.sharing, found.device)
    return found


def _meet_again(count: str, patience: timedelta, cpu: bool) -> None:
    """Meet the others after the launcher has started all once more, under names that no earlier process has used."""
    store, rank, size = next(rendezvous("env://", timeout=patience))
    device = torch.accelerator.current_accelerator()
    backend = "gloo" if cpu or device is None else dist.get_default_backend_for_device(device)
    own = dist.distributed_c10d.PrefixStore(f"start-{count}", store)
    dist.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=patience)


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
