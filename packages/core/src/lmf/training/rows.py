"""Trains the rows of some tokens, and leaves the other rows of the same matrices as they are, bit for bit.

The gradients of the other rows are zero, and their matrices do not decay, so an optimizer has nothing to change them
by. Whether it kept to that is checked after the first step and at the end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import LmfError
from ..models import ends


class Rows:
    """What a model trains that has a row for each token.

    Args:
        model: The prepared model.
        tokens: The ids whose rows are trained.

    Attributes:
        matrices: By their names; V rows each.
    """

    def __init__(self, model: nn.Module, tokens: Sequence[int]):
        modules = ends(model)
        count = max(len(p) for p in modules[0].parameters())
        own = {id(p) for module in modules for p in module.parameters() if len(p) == count}
        self.tokens = list(tokens)
        self.matrices = {name: p for name, p in model.named_parameters() if p.requires_grad and id(p) in own and tokens}

    @property
    def held(self) -> int:
        """How many parameters stand in the other rows."""
        return sum(p.numel() // len(p) * (len(p) - len(self.tokens)) for p in self.matrices.values())

    def hold(self) -> None:
        """Let no gradient reach the other rows from now on. The model is in its place and precision."""
        for parameter in self.matrices.values():
            parameter.register_hook(self._only)

    def groups(self, groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return groups of parameters in which the matrices do not decay."""
        own = {id(parameter) for parameter in self.matrices.values()}
        found = []
        for group in groups:
            rest = [p for p in group["params"] if id(p) not in own]
            apart = [p for p in group["params"] if id(p) in own]
            found += [{**group, "params": rest}] if rest else []
            found += [{**group, "params": apart, "weight_decay": 0.0}] if apart else []
        return found

    def digest(self) -> str:
        """Return the SHA-256 of the other rows."""
        found = hashlib.sha256()
        for parameter in self.matrices.values():
            rows = parameter.detach()[self._others(parameter)]
            found.update(rows.contiguous().cpu().view(torch.uint8).numpy().data)
        return found.hexdigest()

    def check(self, before: str) -> None:
        """Raise LmfError if the other rows are not what they were."""
        if self.digest() != before:
            raise LmfError(
                "--train-new-tokens-only: the optimizer changes rows that have no gradient. Use --optimizer adamw."
            )

    def _only(self, gradient: torch.Tensor) -> torch.Tensor:
        others = self._others(gradient)
        return gradient.masked_fill(others.reshape(-1, *[1] * (gradient.ndim - 1)), 0)

    def _others(self, tensor: torch.Tensor) -> torch.Tensor:
        found = torch.ones(len(tensor), dtype=torch.bool, device=tensor.device)
        found[self.tokens] = False
        return found
