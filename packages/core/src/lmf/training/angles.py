"""Rotary angles that depend on how long a text is, for each text of a row by itself.

transformers turns all positions of a forward pass by the length of the longest text in it, and with ``dynamic`` also by
that of the longest before it. Here a text is turned as if it were alone and the first. The way of ``lean``: a module's
class becomes a subclass of its own with another ``forward``.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

BY_LENGTH = ("dynamic", "longrope")  # types of positions


def by_length(config: Any) -> bool:
    """Tell whether the angles of a model depend on how long a text is."""
    return (getattr(config.get_text_config(), "rope_parameters", None) or {}).get("rope_type") in BY_LENGTH


def apart(model: nn.Module) -> None:
    """Have a model turn each text of a row by its own length; a text begins at position 0, or with the row."""
    for module in model.modules():
        if getattr(module, "rope_type", None) in BY_LENGTH and not hasattr(type(module), "_lmf_by_text"):
            module.__class__ = _subclass(type(module))


@functools.cache
def _subclass(base: Any) -> type:
    def forward(self: Any, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if isinstance(position_ids, FakeTensor):  # no numbers to see lengths in; what is computed has the same shapes
            return inspect.unwrap(base.forward)(self, x, position_ids)
        found = []
        for positions in position_ids.split(_lengths(self, position_ids), dim=1):
            _forget(self)
            found.append(base.forward(self, x, positions))
        return tuple(torch.cat(parts, dim=1) for parts in zip(*found, strict=True))

    members = {"forward": forward, "__module__": base.__module__, "_lmf_by_text": True}
    return type(base.__name__, (base,), members)


def _lengths(module: Any, position_ids: torch.Tensor) -> list[int]:
    """Return how many tokens of a row are turned alike, from its beginning on.

    Args:
        module: What makes the angles.
        position_ids: (1, N), or (B, N) with texts that all begin with the row.
    """
    row = position_ids[0].tolist()
    starts = [at for at, position in enumerate(row) if position == 0 or at == 0] if len(position_ids) == 1 else [0]
    parts = [(max(row[start:end]) + 1, end - start) for start, end in itertools.pairwise([*starts, len(row)])]
    most = module.original_max_seq_len
    if module.rope_type == "longrope":
        most = module.config.rope_parameters["original_max_position_embeddings"]
    alike = itertools.groupby(parts, lambda part: max(part[0], most))
    return [sum(tokens for _, tokens in group) for _, group in alike]


def _forget(module: Any) -> None:
    """Let no earlier text count."""
    if module.rope_type == "dynamic":
        module.inv_freq = module.original_inv_freq
        module.max_seq_len_cached = module.original_max_seq_len
