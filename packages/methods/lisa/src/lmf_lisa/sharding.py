"""What LISA cannot do where weights or optimizer state are divided among processes, said by name."""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
from accelerate.utils import parse_flag_from_env
from lmf import ConfigError, LmfError
from torch.distributed.tensor import DTensor


def check_launch(dtype: str) -> None:
    """Refuse what ``accelerate launch`` was told to do and LISA cannot, before a model is loaded.

    Args:
        dtype: The setting ``--dtype``.

    Raises:
        ConfigError: It is DeepSpeed, the first version of FSDP, or FSDP with weights of 16 bits.
    """
    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        raise ConfigError(
            "LISA cannot run under DeepSpeed: ZeRO copies what is trained at the start into buffers of its own and "
            "steps those, so layers that are drawn later would never change, and those that are left would keep "
            "their state. Launch without DeepSpeed."
        )
    if not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise ConfigError(
            "LISA cannot run under the first version of FSDP: it lays the weights of a layer end to end in one tensor "
            "when the run begins, with what is trained then. Launch with --fsdp_version 2, or without FSDP."
        )
    if dtype != "float32":
        raise ConfigError(f"{_PRECISION} Give --dtype float32 instead of --dtype {dtype}, or launch without FSDP.")


def check_sharded(parameters: Iterable[torch.Tensor], state: str) -> None:
    """Refuse weights that FSDP2 has sharded and that would have to change.

    Raises:
        LmfError: They are not in float32, or their state should go to host memory.
    """
    sharded = [parameter for parameter in parameters if isinstance(parameter, DTensor)]
    if any(parameter.dtype != torch.float32 for parameter in sharded):
        raise LmfError(f"{_PRECISION} Load the model in float32, and let FSDP2 compute in 16 bits by its policy.")
    if sharded and state == "park":
        raise LmfError(
            "--state park moves the optimizer's state of a layer to host memory, but that of sharded weights belongs "
            "to the devices of their mesh. Use --state reset or --state keep."
        )


_PRECISION = (
    "LISA trains weights in float32 and keeps the others in the precision of the forward pass, but FSDP2 fixes the "
    "precision of a weight when it shards it."
)
