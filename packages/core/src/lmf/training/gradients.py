"""The norm of the gradient of each decoder layer, measured on the data of a run.

It tells which layers the data would change, for methods that train some layers more often than others. No more
than the gradient of one parameter is held at a time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..encoding.material import encode_data
from ..errors import LmfError
from ..memory import machine
from ..memory.largest import sized
from ..parallel.processes import Processes
from ..plan import Plan
from ..report import Reporter
from ..specs import ModelSpec, Tuner, TuningMethod
from . import packing
from .learner import load_learner
from .packing import Batch
from .supply import supply_of

STEPS = 8  # optimizer steps whose data are measured where the run does not say


def measure(plan: Plan, report: Reporter | None = None) -> list[float]:
    """Return the norm of the gradient of each decoder layer, in the order of the model.

    The model is the base model, whatever the method of the plan, with all of its weights in the precision of the
    forward pass. The data are those of the first ``--steps`` optimizer steps, ``STEPS`` by default.

    Raises:
        LmfError: The model cannot be loaded, or a gradient is not a finite number.
    """
    device = machine.device()
    material = encode_data(plan, report or Reporter())
    plan = sized(plan, report or Reporter(), Processes(device=device), material)
    whole = dataclasses.replace(plan, method=_METHOD, method_options=_Nothing())
    learner = load_learner(whole, material, device, Reporter())
    model = learner.model
    layers = list(model.get_submodule(learner.spec.layers).children())
    model.requires_grad_(False)
    for layer in layers:
        layer.to(learner.compute).requires_grad_(True)

    settings, supply = plan.settings, supply_of(material.train, plan)
    batches = (
        learner.batch(examples).to(device)
        for chunk in itertools.islice(supply.batches(0), settings.steps or STEPS)
        for examples in packing.micro_batches(chunk, settings.micro_batch_tokens, learner.packed)
    )

    def loss(batch: Batch) -> torch.Tensor:
        with learner.precision(device):
            return material.criterion.loss(model, batch) / batch.weight

    model.train()
    return norms(layers, loss, batches)


def norms(layers: Sequence[nn.Module], loss: Callable[[Batch], torch.Tensor], batches: Iterable[Batch]) -> list[float]:
    """Return the root of the mean square of the norm of the gradient of each layer, over batches.

    Args:
        layers: The layers; what is to be measured in them requires gradients.
        loss: The loss of a batch, a scalar.
        batches: What to measure on, at least one.

    Raises:
        LmfError: A gradient is not a finite number.
    """
    squares: list[Any] = [0.0] * len(layers)

    def add(parameter: nn.Parameter, number: int) -> None:
        assert parameter.grad is not None
        squares[number] += torch.linalg.vector_norm(parameter.grad, dtype=torch.float32).square()
        parameter.grad = None

    with contextlib.ExitStack() as hooks:
        for number, layer in enumerate(layers):
            for parameter in layer.parameters():
                if parameter.requires_grad:
                    hook = parameter.register_post_accumulate_grad_hook(lambda p, number=number: add(p, number))
                    hooks.callback(hook.remove)
        count = 0
        for batch in batches:
            loss(batch).backward()
            count += 1
    found = [math.sqrt(float(square) / count) for square in squares]
    for number, norm in enumerate(found):
        if not math.isfinite(norm):
            raise LmfError(f"The gradient of layer {number} is {norm}; look at the data, or try --dtype float32.")
    return found


class _First(Tuner):
    """Frees one layer, for a learner must have something to train; what is frozen takes the least memory."""

    def __init__(self, spec: ModelSpec):
        self.path = spec.layers

    def prepare(self, model: nn.Module, new_tokens: Sequence[int] = ()) -> nn.Module:
        model.requires_grad_(False)
        next(model.get_submodule(self.path).children()).requires_grad_(True)
        return model


@dataclass(frozen=True)
class _Nothing:
    """No options."""


_METHOD = TuningMethod(
    name="gradients", summary="Nothing is trained.", options=_Nothing, build=lambda _, spec: _First(spec)
)
