"""A model whose weights, gradients and optimizer state are divided among the processes (FSDP2).

Each process keeps so many rows of every weight. The weights of a decoder layer are put together when it is computed,
and given back afterwards. Nothing is sent to divide a model: each process maps the files and copies its rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import Any, TypeVar

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from ..models import inner
from .copies import Copies, gathered
from .pieces import Piece, Saved, restore

T = TypeVar("T")


class Sharded(Copies):
    """Each process has a part of every weight."""

    lockstep = True

    def _wrap(self) -> None:
        device = self.processes.device
        mesh = init_device_mesh(device.type, (self.processes.count,))
        away = self.sharing.offload and device.type != "cpu"  # on a CPU, they are in main memory anyway
        offload = CPUOffloadPolicy() if away else OffloadPolicy()
        layers = inner(self.model).get_submodule(self.learner.spec.layers)
        for part in (*layers.children(), self.learned):
            for parameter in part.parameters():
                if not isinstance(parameter, DTensor):
                    parameter.data = parameter.data.to(self.learner.dtype(parameter))
            fully_shard(part, mesh=mesh, offload_policy=offload)
        self.wrapped = self.learned

    def follow(self) -> None:
        pass  # a weight that is trained now has its gradient reduced, as any other

    def close(self) -> None:
        pass

    def passing(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()  # gradients are exchanged after each pass, for whole ones have no room

    def backward(self, loss: torch.Tensor) -> None:
        (loss * self.processes.count).backward()

    def within(self, work: Callable[[], T]) -> T | None:
        with torch.no_grad():
            return self.wrapped(work)["result"]

    @contextlib.contextmanager
    def whole(self, parameters: Collection[nn.Parameter], change: bool = False) -> Iterator[None]:
        self._reshard()
        with gathered(self.model, parameters, self._gather, self._scatter if change else None):
            yield

    def _gather(self, parameter: Any) -> torch.Tensor:
        value = parameter.detach().full_tensor()  # in every process for a moment
        return value.cpu() if self.processes.main else value.new_empty(0)

    @torch.no_grad()
    def _scatter(self, parameter: Any, value: torch.Tensor) -> None:
        """Give each process its rows of what the main process has."""
        value = (
            value.to(self.processes.device)
            if self.processes.main
            else torch.empty(parameter.shape, dtype=parameter.dtype, device=self.processes.device)
        )
        mine: Any = distribute_tensor(value, parameter.device_mesh, parameter.placements)
        parameter.to_local().copy_(mine.to_local())

    def _reshard(self) -> None:
        """Have the parameters divided; those beside the layers stay together after a forward pass."""
        for module in self.learned.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def finite(self) -> bool:
        self._reshard()
        parts = [parameter.to_local() for parameter in self.model.parameters() if isinstance(parameter, DTensor)]
        return not self.processes.largest(int(not all(part.isfinite().all() for part in parts)))

    def _piece(self, value: torch.Tensor) -> Piece | None:
        if not isinstance(value, DTensor):
            return super()._piece(value)
        start = _start(value)
        local = value.to_local().detach().cpu().flatten()
        return Piece(local, start, tuple(value.shape)) if local.numel() else None

    def restore(self, saved: Saved) -> None:
        self._reshard()

        def placed(key: str, parameter: nn.Parameter) -> torch.Tensor:
            if saved.shapes[key] != tuple(parameter.shape) or not isinstance(parameter, DTensor):
                return saved.whole(key)
            local, start = parameter.to_local(), _start(parameter)
            values = saved.read(key, start, start + local.numel()).view(local.shape).to(local.device)
            return DTensor.from_local(
                values, parameter.device_mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride()
            )

        restore(self.model, self.optimizer, saved, placed)


def _start(value: DTensor) -> int:
    """Return the number of elements before those that this process has."""
    _, offset = compute_local_shape_and_global_offset(value.shape, value.device_mesh, value.placements)
    rows = offset[0] if offset else 0
    return rows * (value.numel() // value.shape[0])
