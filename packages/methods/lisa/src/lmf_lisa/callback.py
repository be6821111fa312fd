"""LISA for the Trainer of transformers, for those who do not use the loop of lmf.

    trainer = Trainer(model=model, ..., callbacks=[LisaCallback(active_layers=2, interval=20)])

What it cannot do there: keep weights of 16 bits exact (load the model in float32 and let ``bf16=True`` compute), run
under FSDP or DeepSpeed, which make their own copies of what was trainable at the start, or under DDP without
``ddp_find_unused_parameters=True``. It says so instead.
"""

from __future__ import annotations

from typing import Any

from lmf import LmfError, ModelSpec
from lmf.config import make
from transformers import TrainerCallback

from . import LisaOptions, build
from .tuner import LisaTuner


class LisaCallback(TrainerCallback):
    """Trains a few decoder layers at a time.

    Args:
        layers: The dotted path from the model to its decoder layers.
        seed: Decides which layers are drawn; the Trainer's by default.
        options: The fields of ``LisaOptions``.

    Raises:
        LmfError: At the beginning of the training, if it cannot be right.
    """

    def __init__(self, layers: str = "model.layers", seed: int | None = None, **options: Any):
        tuner = build(make(LisaOptions, options), ModelSpec(name="model", template="", layers=layers))
        assert isinstance(tuner, LisaTuner)
        tuner.casts = False
        self.tuner, self.seed = tuner, seed

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        model, optimizer = given["model"], given["optimizer"]
        for name, on in (("FSDP", args.fsdp), ("DeepSpeed", args.deepspeed)):
            if on:
                raise LmfError(
                    f"LISA cannot run under {name} with the Trainer: it copies what is trained at the start."
                )
        if args.world_size > 1 and args.ddp_find_unused_parameters is not True:
            raise LmfError("LISA under DDP needs TrainingArguments(ddp_find_unused_parameters=True).")
        known = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        missing = [name for name, parameter in model.named_parameters() if parameter not in known]
        if missing:
            raise LmfError(
                f"The optimizer does not know {missing[0]} and {len(missing) - 1} others, so they would never change. "
                "Freeze nothing before the Trainer makes its optimizer."
            )
        self.tuner.seed = args.seed if self.seed is None else self.seed
        self.tuner.prepare(model)

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        optimizer = given["optimizer"]
        self.tuner.before_step(state.global_step, getattr(optimizer, "optimizer", optimizer))
