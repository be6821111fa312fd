"""A model that every process has whole: the processes exchange gradients (DDP), or there is but one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn

from ..settings import RunSettings
from ..specs import Criterion
from ..training.learner import Learner
from ..training.loss import Learned
from ..training.packing import Batch
from ..training.update import update_of
from .choice import Sharing
from .pieces import Piece, Saved, State, restore, state_of, whole
from .processes import processes_of

T = TypeVar("T")


class Copies:
    """Each process has the whole model. What divides a model looks the same from outside.

    Args:
        learner: What learns.
        criterion: What it learns.
        settings: The settings of the run.
        sharing: How the model is shared.
        accelerator: Puts the model on the device.
        build: Makes the optimizer, as soon as the parameters are what it is to step.

    Attributes:
        lockstep: Whether all processes must do the same number of forward passes.
        processes: The processes.
        model: The model, without what shares it.
        optimizer: The optimizer; its groups may get another learning rate before each step.
    """

    lockstep = False

    def __init__(
        self,
        learner: Learner,
        criterion: Criterion,
        settings: RunSettings,
        sharing: Sharing,
        accelerator: Accelerator,
        build: Callable[[], torch.optim.Optimizer],
    ):
        self.learner, self.settings, self.sharing, self.accelerator = learner, settings, sharing, accelerator
        self.processes = processes_of(accelerator)
        self.model = learner.model
        self.learned = Learned(learner.model, criterion)
        self.wrapped: nn.Module = self.learned
        self._begin(build)

    @classmethod
    def check(cls, sharing: Sharing, device: torch.device) -> None:
        """Refuse what cannot share a model here, before anything is loaded.

        Args:
            sharing: How the model is to be shared.
            device: Where this process computes.

        Raises:
            LmfError: A package is missing, or does not know what it is told.
        """

    def _begin(self, build: Callable[[], torch.optim.Optimizer]) -> None:
        """Share the model, and make the optimizer and the updates."""
        self._wrap()
        self.optimizer = build()
        self.update = update_of(self.model, self.optimizer, self.settings)

    def _wrap(self) -> None:
        """Let the processes exchange the gradients of what is trained now."""
        self.wrapped = self.accelerator.prepare_model(self.learned)
        self._exchanged = self._trained()

    def _trained(self) -> list[tuple[bool, torch.dtype]]:
        return [(p.requires_grad, p.dtype) for p in self.model.parameters()]

    def close(self) -> None:
        """Take off what shares the model. Torn down after its processes, it may wait for them for ever (gloo)."""
        self.wrapped = self.learned
        self.accelerator.free_memory()

    def follow(self) -> None:
        """Take notice that the method may have changed what is trained."""
        if self.processes.count > 1 and self._trained() != self._exchanged:
            self.close()
            self._wrap()
            self.wrapped.train()

    def loss(self, batch: Batch) -> torch.Tensor:
        """Return the loss of a batch of this process, summed over what counts; a scalar."""
        with self.learner.precision(self.processes.device):
            return self.wrapped(batch)

    def passing(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Surround a forward pass and its backward pass; gradients need not be exchanged before the last one."""
        return contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a loss; in the end they are those of the sum of the losses of all processes."""
        self.accelerator.backward(loss * self.processes.count)

    def norm(self) -> torch.Tensor:
        """Return the norm of the gradients of all parameters, a scalar."""
        return self.update.norm()

    def step(self, norm: torch.Tensor) -> None:
        """Take the optimizer step with gradients of this norm."""
        self.update.step(norm)

    def within(self, work: Callable[[], T]) -> T | None:
        """Do work that calls ``model`` itself: in the main process, or where it is divided, the same in all.

        Returns:
            What the work returns, in the main process.
        """
        return work() if self.processes.main else None

    @contextlib.contextmanager
    def whole(self, parameters: Collection[nn.Parameter], change: bool = False) -> Iterator[None]:
        """Have these parameters whole in the main process while the block runs, on the CPU where they are divided.

        Args:
            parameters: Some of the model's.
            change: Hand what the main process makes of them to all processes.
        """
        yield
        if change and self.processes.count > 1:
            for parameter in parameters:
                dist.broadcast(parameter.data, 0)

    def finite(self) -> bool:
        """Return whether all weights are finite numbers; the same in all processes."""
        bad = not all(p.isfinite().all() for p in self.model.parameters())
        return not self.processes.largest(int(bad))

    def state(self) -> State:
        """Return what this process is to write of the optimizer's state."""
        return state_of(self.model, self.optimizer, self._piece)

    def _piece(self, value: torch.Tensor) -> Piece | None:
        """Return what this process is to write of a tensor of the state."""
        return whole(value) if self.processes.main else None

    def restore(self, saved: Saved) -> None:
        """Put the optimizer's state back.

        Raises:
            LmfError: It is that of another model.
        """
        restore(self.model, self.optimizer, saved)


@contextlib.contextmanager
def gathered(
    model: nn.Module,
    parameters: Collection[nn.Parameter],
    gather: Callable[[nn.Parameter], torch.Tensor],
    scatter: Callable[[nn.Parameter, torch.Tensor], None] | None,
) -> Iterator[None]:
    """Put whole parameters in the place of divided ones while the block runs, one after the other.

    Args:
        model: The model.
        parameters: Some of its parameters.
        gather: Returns a parameter whole in the main process, and something empty in others.
        scatter: Divides what became of it in the main process; None if that is to be forgotten.
    """
    full = {each: nn.Parameter(gather(each), requires_grad=each.requires_grad) for each in parameters}
    with _swapped(model, full):
        yield
    if scatter:
        for parameter, changed in full.items():
            scatter(parameter, changed.data)


@contextlib.contextmanager
def _swapped(model: nn.Module, others: Mapping[nn.Parameter, nn.Parameter]) -> Iterator[None]:
    modules = list(model.modules())
    places = [(m, name, p) for m in modules for name, p in m._parameters.items() if p is not None and p in others]
    try:
        for module, name, parameter in places:
            module._parameters[name] = others[parameter]
        yield
    finally:
        for module, name, parameter in places:
            module._parameters[name] = parameter
