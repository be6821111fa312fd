"""The state of an optimizer in files, whatever the number of processes that wrote them or will read them.

A tensor that belongs to several processes is written in pieces: so many elements in a row of the flattened tensor, each
in the file of its process. Whoever reads it asks for the elements that it needs. Names are ``parameter/field``.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from ..errors import LmfError


@dataclass(frozen=True, slots=True)
class Piece:
    """What a process has of a tensor.

    Attributes:
        values: The whole tensor, or so many elements of it in a row.
        start: The first of these elements in the flattened tensor.
        shape: The shape of the whole tensor.
    """

    values: torch.Tensor
    start: int
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class State:
    """What a process knows of the state of an optimizer.

    Attributes:
        tensors: What it is to write of its tensors.
        scalars: Its other values; the same in all processes.
        groups: The settings of each group of parameters; the same in all processes.
    """

    tensors: Mapping[str, Piece]
    scalars: Mapping[str, Any]
    groups: Sequence[Mapping[str, float]]


def whole(tensor: torch.Tensor) -> Piece:
    """Return all of a tensor as a piece in main memory."""
    return Piece(tensor.detach().cpu().contiguous(), 0, tuple(tensor.shape))


def state_of(
    model: nn.Module, optimizer: torch.optim.Optimizer, piece: Callable[[torch.Tensor], Piece | None] = whole
) -> State:
    """Return the state of an optimizer of a model; ``piece`` returns what this process is to write of a tensor."""
    tensors: dict[str, Piece] = {}
    scalars: dict[str, Any] = {}
    for owner, parameter in model.named_parameters():
        for field, value in optimizer.state.get(parameter, {}).items():
            if not isinstance(value, torch.Tensor):
                scalars[f"{owner}/{field}"] = value
            elif own := piece(value):
                tensors[f"{owner}/{field}"] = own
    return State(tensors, scalars, groups_of(optimizer))


def groups_of(optimizer: torch.optim.Optimizer) -> list[dict[str, float]]:
    """Return the settings of each group of parameters that are numbers."""
    return [{k: v for k, v in group.items() if type(v) in (int, float)} for group in optimizer.param_groups]


def save_pieces(tensors: Mapping[str, Piece], folder: Path, rank: int = 0) -> None:
    """Write the pieces of one of several processes into a folder that is common to all."""
    parts = {name: [p.start, *p.shape] for name, p in tensors.items() if p.values.shape != p.shape}
    name = f"optimizer-{rank}.safetensors" if rank else "optimizer.safetensors"
    save_file({k: p.values for k, p in tensors.items()}, folder / name, metadata={"parts": json.dumps(parts)})


class Saved:
    """The state of an optimizer as the processes of a run have written it.

    Args:
        folder: The folder.
        scalars: Values that are no tensors.
        groups: The settings of each group of parameters.

    Attributes:
        shapes: The shapes of the tensors, by their names.

    Raises:
        LmfError: A part of a tensor is missing.
    """

    def __init__(self, folder: Path, scalars: Mapping[str, Any], groups: Sequence[Mapping[str, float]]):
        self.folder, self.scalars, self.groups = folder, scalars, groups
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._places: dict[str, list[tuple[int, int, Any]]] = defaultdict(list)  # start, stop and file of each piece
        for path in sorted(folder.glob("optimizer*.safetensors")):
            file: Any = safe_open(path, "pt")
            parts = json.loads((file.metadata() or {}).get("parts", "{}"))
            for name in file.keys():  # noqa: SIM118  it is no dict
                own = tuple(file.get_slice(name).get_shape())
                start, *shape = parts.get(name, (0, *own))
                self.shapes[name] = tuple(shape)
                self._places[name].append((start, start + math.prod(own), file))
        for name, places in self._places.items():
            places.sort(key=lambda place: place[:2])
            end = 0
            for start, stop, _ in places:
                end = stop if start == end else -1
            if end != math.prod(self.shapes[name]):
                raise LmfError(f"{folder} lacks a part of the optimizer's {name}.")

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Return the elements of a tensor from ``start`` to before ``stop``, flattened; to the end by default."""
        stop = math.prod(self.shapes[name]) if stop is None else stop
        found = []
        for begin, end, file in self._places[name]:
            if (begin < stop and start < end) or not found:
                values = file.get_tensor(name).flatten()  # pages of the file; what is not asked for is not read
                found.append(values[max(start - begin, 0) : max(stop - begin, 0)])
        return torch.cat(found)  # a copy

    def whole(self, name: str) -> torch.Tensor:
        """Return a tensor in its shape."""
        return self.read(name).view(self.shapes[name])


def restore(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    saved: Saved,
    placed: Callable[[str, nn.Parameter], torch.Tensor] | None = None,
) -> None:
    """Put the state of an optimizer of a model back.

    Args:
        model: The model.
        optimizer: The optimizer.
        saved: The state.
        placed: Returns what this process needs of a tensor of a parameter; all of it by default.

    Raises:
        LmfError: The state is that of another model.
    """
    parameters = dict(model.named_parameters())
    for group, values in zip(optimizer.param_groups, saved.groups, strict=True):
        group.update(values)
    beside = {p for g in optimizer.param_groups if g.get("fused") or g.get("capturable") for p in g["params"]}
    optimizer.state.clear()
    for key in (*saved.shapes, *saved.scalars):
        owner, _, field = key.rpartition("/")
        if owner not in parameters:
            raise LmfError(f"{saved.folder} has optimizer state for {owner!r}, which the model does not know.")
        parameter = parameters[owner]
        if key in saved.scalars:
            optimizer.state[parameter][field] = saved.scalars[key]
            continue
        value = placed(key, parameter) if placed else saved.whole(key)
        if field != "step" or parameter in beside:
            value = value.to(parameter.device)  # torch keeps the step count on the CPU, unless its kernel counts
        optimizer.state[parameter][field] = value
