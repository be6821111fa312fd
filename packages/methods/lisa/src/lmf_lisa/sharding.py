"""What LISA cannot do where weights or optimizer state are divided among processes, said by name."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from lmf import ConfigError, LmfError
from torch.distributed.tensor import DTensor


def check_way(parallel: str, dtype: str, state: str) -> None:
    """Refuse a way to share a model that LISA cannot follow, before a model is loaded.

    Args:
        parallel: The way.
        dtype: The setting ``--dtype``.
        state: The option ``--state``.

    Raises:
        ConfigError: It is ZeRO, or FSDP2 with weights of 16 bits or state in host memory.
    """
    if parallel.startswith("zero"):
        raise ConfigError(
            "LISA cannot run under DeepSpeed: ZeRO copies what is trained at the start into buffers of its own and "
            "steps those, so layers that are drawn later would never change, and those that are left would keep "
            "their state. Use --parallel ddp or fsdp."
        )
    if parallel == "fsdp" and dtype != "float32":
        raise ConfigError(f"{_PRECISION} Give --dtype float32 instead of --dtype {dtype}, or --parallel ddp.")
    if parallel == "fsdp" and state == "park":
        raise ConfigError(_PARK)


def check_sharded(parameters: Iterable[torch.Tensor], state: str) -> None:
    """Refuse weights that FSDP2 has sharded and that would have to change.

    Raises:
        LmfError: They are not in float32, or their state should go to host memory.
    """
    sharded = [parameter for parameter in parameters if isinstance(parameter, DTensor)]
    if any(parameter.dtype != torch.float32 for parameter in sharded):
        raise LmfError(f"{_PRECISION} Load the model in float32, and let FSDP2 compute in 16 bits by its policy.")
    if sharded and state == "park":
        raise LmfError(_PARK)


_PARK = (
    "--state park moves the optimizer's state of a layer to host memory, but that of sharded weights belongs "
    "to the devices of their mesh. Use --state reset or --state keep."
)
_PRECISION = (
    "LISA trains weights in float32 and keeps the others in the precision of the forward pass, but FSDP2 fixes the "
    "precision of a weight when it shards it."
)
