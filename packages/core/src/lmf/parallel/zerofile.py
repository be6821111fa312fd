"""DeepSpeed's configuration: made from the settings of a run, or a user's own file filled in from them.

What a file may leave to the settings is written ``"auto"``, as transformers has it. A number that says something else
than the settings is an error, for one of the two would not be obeyed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import flag
from ..errors import ConfigError, did_you_mean
from ..settings import RunSettings

AUTO = "auto"
OURS = (  # what lmf decides
    *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"),
    *("optimizer", "scheduler", "fp16", "bf16", "zero_optimization"),
)
THEIRS = (  # what DeepSpeed gets as it is
    *("activation_checkpointing", "aio", "comms_logger", "communication_data_type", "csv_monitor", "data_types"),
    *("dump_state", "flops_profiler", "gradient_predivide_factor", "memory_breakdown", "prescale_gradients"),
    *("steps_per_print", "tensorboard", "timers", "wall_clock_breakdown", "wandb", "comet", "log_level"),
    *("zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer"),
)
BY_HIDDEN = {  # sizes that are "auto", by the width of the model, as transformers fills them in
    "reduce_bucket_size": lambda hidden: hidden * hidden,
    "stage3_prefetch_bucket_size": lambda hidden: int(0.9 * hidden * hidden),
    "stage3_param_persistence_threshold": lambda hidden: 10 * hidden,
}


def read_zero(file: Path) -> dict[str, Any]:
    """Return what a file says.

    Raises:
        ConfigError: It cannot be read, or has a key that neither lmf nor DeepSpeed knows.
    """
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"--deepspeed {file} cannot be read: {reason}.") from None
    if not isinstance(config, dict):
        raise ConfigError(f"--deepspeed {file} must hold a JSON object.")
    for key in config:
        if key not in (*OURS, *THEIRS):
            near = did_you_mean(key, (*OURS, *THEIRS))
            raise ConfigError(f"--deepspeed {file}: {key!r} is no key that lmf can hand to DeepSpeed.{near}")
    for key in ("optimizer", "scheduler", "fp16", "bf16", "zero_optimization"):
        if not isinstance(config.get(key, {}), dict):
            raise ConfigError(f"--deepspeed {file}: {key} must be an object.")
    return config


def stage_of(config: Mapping[str, Any], file: Path) -> int:
    """Return the stage of ZeRO that a file asks for; 0 where it asks for none.

    Raises:
        ConfigError: There is no such stage.
    """
    stage = config.get("zero_optimization", {}).get("stage", 0)
    if stage not in (0, 1, 2, 3) or isinstance(stage, bool):
        raise ConfigError(f"--deepspeed {file}: zero_optimization.stage is {stage!r}; it must be 0, 1, 2 or 3.")
    return int(stage)


def check_zero(
    config: Mapping[str, Any], path: Path, offload: str | None, settings: RunSettings, learning_rate: float
) -> None:
    """Refuse a file that says something else than the settings.

    Args:
        config: What ``read_zero`` returned.
        path: The file.
        offload: Where divided weights and optimizer state are kept.
        settings: The settings of the run.
        learning_rate: The peak learning rate.

    Raises:
        ConfigError: It does.
    """
    file = f"--deepspeed {path}"
    batch = config.get("train_batch_size", AUTO)
    if batch not in (AUTO, settings.batch_size):
        raise ConfigError(f"{file} has train_batch_size {batch}, but --batch-size is {settings.batch_size}.")
    for key in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        if config.get(key, AUTO) != AUTO:
            raise ConfigError(
                f'{file} has {key} {config[key]}, but passes are bounded by their tokens: write "auto" there, and '
                f"--micro-batch-tokens (now {settings.micro_batch_tokens or 'auto'})."
            )
    if config.get("gradient_clipping", AUTO) not in (AUTO, settings.clip):
        raise ConfigError(f"{file} has gradient_clipping {config['gradient_clipping']}, but --clip is {settings.clip}.")
    if config.get("fp16", {}).get("enabled", AUTO) not in (AUTO, False):
        raise ConfigError(f"{file} enables fp16; lmf computes in bfloat16 or float32. Write false there, or auto.")
    low = config.get("bf16", {}).get("enabled", AUTO)
    if settings.dtype != AUTO and low not in (AUTO, settings.dtype == "bfloat16"):
        raise ConfigError(f"{file} has bf16.enabled {str(low).lower()}, but --dtype is {settings.dtype}.")
    optimizer = config.get("optimizer", {})
    if optimizer.get("type", "AdamW") not in ("Adam", "AdamW"):
        raise ConfigError(f"{file} has the optimizer {optimizer['type']}; choose one by --optimizer and leave it out.")
    known = {"lr": learning_rate, "weight_decay": settings.weight_decay, "betas": [0.9, 0.999], "eps": 1e-8}
    flags = {"lr": "learning_rate", "weight_decay": "weight_decay"}
    for key, value in optimizer.get("params", {}).items():
        if value != AUTO and key in known and value != known[key]:
            now = f"{flag(flags[key])} is {known[key]}" if key in flags else f"lmf's is {known[key]}"
            raise ConfigError(f"{file} has {key} {value} for the optimizer, but {now}.")
    schedule = config.get("scheduler", {}).get("params", {})
    given = [key for key, value in schedule.items() if value not in (AUTO, 0)]
    if given:
        raise ConfigError(f"{file} has {given[0]} for its scheduler; --schedule and --warmup decide. Leave it out.")
    for part in ("offload_optimizer", "offload_param"):
        device = config.get("zero_optimization", {}).get(part, {}).get("device", "none")
        if offload and device not in ("none", AUTO, offload.partition(":")[0]):
            raise ConfigError(f"{file} has {part} to {device}, but --offload is {offload}.")


def fill_zero(
    config: Mapping[str, Any],
    *,
    stage: int,
    offload: str | None,
    clip: float,
    bfloat16: bool,
    hidden: int,
    processes: int,
) -> dict[str, Any]:
    """Return the configuration that DeepSpeed gets.

    Args:
        config: What ``read_zero`` returned, or nothing.
        stage: The stage of ZeRO.
        offload: Where divided weights and optimizer state are kept.
        clip: Largest norm of the gradient; 0 for no limit.
        bfloat16: Whether the forward pass is in bfloat16.
        hidden: The width of the model.
        processes: How many there are.
    """
    zero: dict[str, Any] = {"stage": stage, **config.get("zero_optimization", {})}
    zero = {key: BY_HIDDEN[key](hidden) if value == AUTO and key in BY_HIDDEN else value for key, value in zero.items()}
    if offload:
        device, _, folder = offload.partition(":")
        place: dict[str, Any] = {"device": device, "pin_memory": False} | ({"nvme_path": folder} if folder else {})
        zero["offload_optimizer"] = place
        if stage == 3:
            zero["offload_param"] = place
    low = config.get("bf16", {}).get("enabled", AUTO)
    bfloat16 = bfloat16 if low == AUTO else bool(low)
    return {
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW on the CPU needs no compiler
        "steps_per_print": 2**31,
        **{key: value for key, value in config.items() if key in THEIRS},
        # the run makes its own batches: one "sample" of DeepSpeed is all that a process does in a pass
        "train_batch_size": processes,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": clip,
        "bf16": {"enabled": bfloat16},
        **({"data_types": {"grad_accum_dtype": "fp32"}} if bfloat16 else {}),
        "zero_optimization": {key: value for key, value in zero.items() if value != AUTO},
    }
