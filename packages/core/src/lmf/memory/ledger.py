"""Counts the memory of tensors, those that have storage and those that only claim to.

Every storage that an operation makes is entered when it appears and crossed out when it dies. What
it is for is often known only later: a gradient is a result of the backward pass until it is found
in a parameter. So the book keeps numbers, the purpose of a number can be set at any time, and the
peak is found when the book is closed.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Purpose = Literal["weights", "gradients", "state", "activations", "logits", "temporaries"]
BLOCK = 512  # a GPU's memory is given out in blocks of so many bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Bytes of tensors by what they are for.

    Attributes:
        weights: Parameters and buffers.
        gradients: Gradients of parameters.
        state: The optimizer's state.
        activations: What the forward pass makes, and what is made again with checkpointing.
        logits: What has a number for each token of the vocabulary.
        temporaries: What else the backward pass and the optimizer make.
    """

    weights: int = 0
    gradients: int = 0
    state: int = 0
    activations: int = 0
    logits: int = 0
    temporaries: int = 0

    @property
    def total(self) -> int:
        """The sum."""
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True, slots=True)
class Peak:
    """The most memory that tensors had.

    Attributes:
        usage: What they had at that moment.
        most: The most that each kind ever had, at whatever moment.
    """

    usage: Usage
    most: Usage


class Ledger(TorchDispatchMode):
    """Enters what operations make while it is active.

    It sees what torch's own ``MemTracker`` sees. That one takes one pass over a model whose trained
    parameters stay the same; a run has several passes, and methods that change what is trained.
    Neither sees what a kernel allocates for itself and frees before it returns.

    Args:
        device: The device whose memory is counted.
        vocabulary: The last dimension by which logits are told.
    """

    def __init__(self, device: torch.device, vocabulary: int):
        super().__init__()
        self._device, self._vocabulary = device.type, vocabulary
        self._grain = BLOCK if device.type == "cuda" else 1
        self._numbers: dict[int, int] = {}  # of the storages that live, by their addresses
        self._lives: dict[int, weakref.ref[Any]] = {}
        self._purposes: list[Purpose] = []  # by number
        self._events: list[tuple[int, int]] = []  # (number, bytes that came or went)
        self._backward = False

    def enter(self, tensors: Iterable[torch.Tensor], purpose: Purpose) -> None:
        """Say what tensors are for, made here or elsewhere."""
        for tensor in tensors:
            number = self._number(tensor, purpose)
            if number is not None:
                self._purposes[number] = purpose

    def enter_run(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Say what the tensors of a model and its optimizer are for."""
        parameters = list(model.parameters())
        self.enter((*parameters, *model.buffers()), "weights")
        self.enter((p.grad for p in parameters if p.grad is not None), "gradients")
        values = (value for state in optimizer.state.values() for value in state.values())
        self.enter((value for value in values if isinstance(value, torch.Tensor)), "state")

    @contextlib.contextmanager
    def backward(self) -> Iterator[None]:
        """Mark a backward pass."""
        self._backward = True
        try:
            yield
        finally:
            self._backward = False

    def peak(self) -> Peak:
        """Return the most that was used at a time, and the most of each kind."""
        names = [field.name for field in fields(Usage)]
        now, most, at = dict.fromkeys(names, 0), dict.fromkeys(names, 0), dict.fromkeys(names, 0)
        total = highest = 0
        for number, change in self._events:
            purpose = self._purposes[number]
            total += change
            now[purpose] += change
            most[purpose] = max(most[purpose], now[purpose])
            if total > highest:
                highest, at = total, dict(now)
        return Peak(Usage(**at), Usage(**most))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        # what is computed again in the backward pass has gradients enabled, the rest of it has not
        first = "temporaries" if self._backward and not torch.is_grad_enabled() else "activations"
        for tensor in [result] if isinstance(result, torch.Tensor) else tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                wide = tensor.ndim > 1 and tensor.shape[-1] == self._vocabulary
                self._number(tensor, "logits" if wide else first)
        return result

    def _number(self, tensor: torch.Tensor, purpose: Purpose) -> int | None:
        """Return the number of a tensor's storage, a new one if it has none; None on another device."""
        if tensor.device.type != self._device:
            return None
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address in self._numbers:
            return self._numbers[address]
        number = self._numbers[address] = len(self._purposes)
        size = -(-storage.nbytes() // self._grain) * self._grain
        self._purposes.append(purpose)
        self._events.append((number, size))

        def died(_: Any) -> None:
            self._events.append((number, -size))
            self._numbers.pop(address, None)
            self._lives.pop(number, None)

        self._lives[number] = weakref.ref(storage, died)
        return number
