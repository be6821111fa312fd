"""From gradients to new weights: after the backward pass, or in it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from ..settings import RunSettings

PIECE = 2**16  # elements


def update_of(model: nn.Module, optimizer: torch.optim.Optimizer, settings: RunSettings) -> AfterBackward | InBackward:
    """Return what takes the steps of a run."""
    return InBackward(optimizer) if settings.step_in_backward else AfterBackward(model, optimizer, settings.clip)


class AfterBackward:
    """Takes one step with all gradients, whose norm may be bounded first.

    Args:
        model: What is trained.
        optimizer: Steps its parameters.
        clip: Largest norm of all gradients; 0 for no limit.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, clip: float):
        self.model, self.optimizer, self.clip = model, optimizer, clip

    def norm(self) -> torch.Tensor:
        """Return the norm of all gradients, a scalar on their device."""
        return norm_of([p.grad for p in self.model.parameters() if p.grad is not None])

    def step(self, norm: torch.Tensor) -> None:
        """Take the step with gradients of this norm, and drop them."""
        if self.clip:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), self.clip, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def norm_of(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the Euclidean norm of all elements of some tensors, divided among processes or not; a scalar.

    On a CPU, torch 2.13 adds up the squares of a tensor in float32 one after the other, which loses the last of
    millions. So long tensors are taken in pieces.
    """
    own = [each.to_local() if isinstance(each, DTensor) else each for each in gradients]
    norm = get_total_norm([piece for each in own for piece in _pieces(each)])
    divided = next((each for each in gradients if isinstance(each, DTensor)), None)
    if divided is not None:
        square = norm.double().square()
        dist.all_reduce(square, group=divided.device_mesh.get_group())
        norm = square.sqrt().to(norm.dtype)
    return norm


def _pieces(tensor: torch.Tensor) -> Sequence[torch.Tensor]:
    cut = tensor.is_cpu and not isinstance(tensor, FakeTensor)  # where there are no numbers, none are added up
    return tensor.flatten().split(PIECE) if cut else [tensor]


class InBackward:
    """Steps each parameter as soon as its gradient is whole, and drops that: there is never more than one.

    One backward pass is one step, so gradients can neither be accumulated nor bounded by the norm of them all.
    """

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.optimizer = optimizer
        self.squares: list[torch.Tensor] = []
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            trained = parameter.requires_grad  # or later: some methods change what they train
            parameter.requires_grad_(True).register_post_accumulate_grad_hook(self._arrived)
            parameter.requires_grad_(trained)

    def _arrived(self, parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        self.squares.append(parameter.grad.float().square().sum())
        self.optimizer.step()  # no other parameter has a gradient now
        parameter.grad = None

    def norm(self) -> torch.Tensor:
        """Return the norm of all gradients since the last question, a scalar on their device."""
        squares, self.squares = self.squares, []
        return torch.stack(squares).sum().sqrt()

    def step(self, norm: torch.Tensor) -> None:
        """Do nothing: all steps are taken."""
