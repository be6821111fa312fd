"""How the processes of a run share its model: what was asked for, and whether the parts of the run can do it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..runs import LAUNCHED
from ..settings import RunSettings
from .zerofile import check_zero, read_zero, stage_of

if TYPE_CHECKING:
    from ..specs import Optimizer, TuningMethod

TRUE = {"1", "true", "yes", "on", "y", "t"}
STARTED = {  # an environment variable of what starts processes, and its name
    LAUNCHED: "lmf launch",
    "ACCELERATE_MIXED_PRECISION": "accelerate launch",
    "CROSS_RANK": "deepspeed",
    "TORCHELASTIC_RUN_ID": "torchrun",
}


@dataclass(frozen=True, slots=True)
class Sharing:
    """How a model is shared.

    Attributes:
        way: One of ``lmf.settings.WAYS``.
        file: The user's own configuration of DeepSpeed, if there is one.
        config: What it says.
        offload: Where divided weights and optimizer state are kept: ``cpu``, ``nvme:FOLDER``, or None.
    """

    way: str = "ddp"
    file: Path | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    offload: str | None = None


ONE = Sharing()


def sharing_of(settings: RunSettings, environ: Mapping[str, str] = os.environ) -> Sharing:
    """Return how a model is shared: as the settings say, or else as ``accelerate launch`` was told.

    Raises:
        ConfigError: The settings contradict one another.
    """
    way, file, offload = settings.parallel, settings.deepspeed, settings.offload
    if way == "auto" and file is None and _true(environ, "ACCELERATE_USE_DEEPSPEED"):
        if told := environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none") != "none":
            file = Path(environ["ACCELERATE_DEEPSPEED_CONFIG_FILE"])
        way = "auto" if told else f"zero{environ.get('ACCELERATE_DEEPSPEED_ZERO_STAGE', '2')}"
        device = environ.get("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none")
        offload = offload or (device if device == "cpu" else None)
    elif way == "auto" and file is None and _true(environ, "ACCELERATE_USE_FSDP"):
        way = "fsdp"
        offload = offload or ("cpu" if _true(environ, "FSDP_OFFLOAD_PARAMS") else None)
    config = read_zero(file) if file else {}
    if file is not None:
        stage = stage_of(config, file)
        asked = f"zero{stage}" if stage else "ddp"
        if way not in ("auto", asked):
            raise ConfigError(f"--parallel is {way}, but --deepspeed {file} asks for stage {stage} of ZeRO.")
        way = asked
    if offload not in (None, "cpu") and not offload.startswith("nvme:"):
        raise ConfigError(f"--offload {offload} is no place; write cpu, or nvme:FOLDER.")
    return Sharing("ddp" if way in ("auto", "zero0") else way, file, config, offload)


def check_sharing(
    sharing: Sharing, settings: RunSettings, learning_rate: float, method: TuningMethod, optimizer: Optimizer
) -> None:
    """Refuse what cannot work with a way to share a model.

    Raises:
        ConfigError: The method, the optimizer, a setting or DeepSpeed's configuration does not work with it.
    """
    way = sharing.way
    for kind, part in (("method", method), ("optimizer", optimizer)):
        if way not in part.parallel:
            raise ConfigError(
                f"The {kind} {part.name} does not work with --parallel {way}; it does with {', '.join(part.parallel)}."
            )
    if sharing.offload and way == "ddp":
        raise ConfigError(f"--offload {sharing.offload} needs a model that is divided: --parallel fsdp or zero2.")
    if sharing.offload not in (None, "cpu") and way != "zero3":
        raise ConfigError(f"--offload {sharing.offload} works with --parallel zero3 alone; others can use cpu.")
    if settings.step_in_backward and way != "ddp":
        raise ConfigError(f"--step-in-backward does not work with --parallel {way}, which exchanges gradients later.")
    if sharing.file is not None:
        check_zero(sharing.config, sharing.file, sharing.offload, settings, learning_rate)


def started_by(environ: Mapping[str, str] = os.environ) -> str:
    """Return what started the processes of the run."""
    return next((name for variable, name in STARTED.items() if variable in environ), "lmf")


def _true(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "").lower() in TRUE
