"""Examples to batches.

Examples are laid end to end in one row, without padding. Attention stays inside each
example and positions start anew, so a packed example gets the loss it has alone. Models
that cannot be packed (ALiBi, no exchangeable attention) get padded rows instead.

Shapes: N is the number of tokens of a batch, B rows, L the longest row, K the number of
counted predictions, V the vocabulary.
"""

from __future__ import annotations

import bisect
import inspect
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface

from ..encoding.encoder import IGNORED, Example
from ..layers import attend
from ..losses import autocast_dtype
from .parts import Parts

ATTENTION = "lmf_packed"


@dataclass(frozen=True, slots=True)
class Batch:
    """What one forward pass gets.

    Attributes:
        inputs: Arguments of the model; ``input_ids`` is (1, N) when packed, else (B, L).
        index: Positions whose prediction counts, in the flattened input; (K,).
        targets: The ids to predict there; (K,).
        weights: How much each prediction counts; (K,), or None where each counts 1.
        weight: What the loss of this batch counts for: the sum of the weights.
        tokens: Number of tokens, without padding.
        where: The records it comes from.
    """

    inputs: dict[str, Any]
    index: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor | None
    weight: float
    tokens: int
    where: tuple[str, ...]

    def to(self, device: torch.device) -> Batch:
        """Return the batch with its tensors on a device."""
        inputs = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in self.inputs.items()}
        weights = None if self.weights is None else self.weights.to(device)
        return replace(
            self, inputs=inputs, index=self.index.to(device), targets=self.targets.to(device), weights=weights
        )


def packable(model: nn.Module) -> bool:
    """Tell whether examples can be laid end to end: only attention mixes tokens, and it is ours to give."""
    if not getattr(model, "_supports_attention_backend", False) or getattr(model, "_is_stateful", False):
        return False
    layers = set(getattr(model.config, "layer_types", None) or ())
    if not layers <= {"full_attention", "sliding_attention"}:  # convolutions, recurrences, attention in chunks
        return False
    if any(name.endswith("sinks") for name, _ in model.named_parameters()):
        return False
    arguments = inspect.signature(model.forward).parameters
    return "position_ids" in arguments and "logits_to_keep" in arguments


def pack(examples: Sequence[Example]) -> Batch:
    """Lay examples end to end."""
    lengths = [len(e.ids) for e in examples]
    ids = torch.tensor([[id for e in examples for id in e.ids]])
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    labels = torch.tensor([label for e in examples for label in [IGNORED, *e.labels[1:]]])
    index = (labels != IGNORED).nonzero().squeeze(1)
    # numbers, not a tensor: each layer reads them, and a read from a GPU would wait for it
    bounds = tuple(itertools.accumulate(lengths, initial=0))
    inputs = {"input_ids": ids, "position_ids": positions, "bounds": bounds, "use_cache": False}
    return _batch(examples, inputs, labels, index)


def pad(examples: Sequence[Example]) -> Batch:
    """Put each example in a row of its own, padded on the right; padding is masked and never counted."""
    longest = max(len(e.ids) for e in examples)
    fill = [longest - len(e.ids) for e in examples]
    ids = torch.tensor([e.ids + [0] * n for e, n in zip(examples, fill, strict=True)])
    mask = torch.tensor([[1] * len(e.ids) + [0] * n for e, n in zip(examples, fill, strict=True)])
    labels = torch.tensor(
        [[IGNORED, *e.labels[1:]] + [IGNORED] * n for e, n in zip(examples, fill, strict=True)]
    ).flatten()
    index = (labels != IGNORED).nonzero().squeeze(1)
    inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    return _batch(examples, inputs, labels, index)


def _batch(examples: Sequence[Example], inputs: dict[str, Any], labels: torch.Tensor, index: torch.Tensor) -> Batch:
    weights = None
    if any(e.weights for e in examples):
        counted = [
            weight
            for e in examples
            for label, weight in zip(e.labels[1:], (e.weights or [1.0] * len(e.ids))[1:], strict=True)
            if label != IGNORED
        ]
        weights = torch.tensor(counted)
    return Batch(
        inputs=inputs,
        index=index - 1,
        targets=labels[index],
        weights=weights,
        weight=sum(e.weight for e in examples),
        tokens=sum(len(e.ids) for e in examples),
        where=tuple(e.where for e in examples),
    )


def micro_batches(examples: Sequence[Example], tokens: int, packed: bool) -> list[list[Example]]:
    """Split the examples of a step so that no forward pass has more than ``tokens`` tokens.

    Packed examples go where they leave the least room, the longest first (best-fit decreasing), so
    there are few batches and they are full. Padded ones go with others of their length; padding
    counts as tokens. One example that is longer alone makes a batch of its own.
    """
    batches: list[list[Example]] = []
    if packed:
        room: list[tuple[int, int]] = []  # (tokens left, number of the batch), sorted
        for example in sorted(examples, key=lambda e: -len(e.ids)):
            n = len(example.ids)
            at = bisect.bisect_left(room, (n, 0))
            if at == len(room):
                batches.append([])
                left, number = tokens, len(batches) - 1
            else:
                left, number = room.pop(at)
            batches[number].append(example)
            bisect.insort(room, (left - n, number))
        return batches
    for example in sorted(examples, key=lambda e: len(e.ids)):
        # the last one is the longest
        if not batches or len(example.ids) * (len(batches[-1]) + 1) > tokens:
            batches.append([])
        batches[-1].append(example)
    return batches


def order(count: int, seed: int, epoch: int) -> list[int]:
    """Return the order of the examples in an epoch, a function of nothing else."""
    indices = list(range(count))
    random.Random(f"{seed}:{epoch}").shuffle(indices)
    return indices


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Return the number of optimizer steps in an epoch; the last one may be smaller."""
    return -(-count // batch_size)


def batches(examples: Sequence[Example], size: int, seed: int, start: int, stop: int) -> Iterator[list[Example]]:
    """Yield the examples of the optimizer steps ``start`` to ``stop - 1``."""
    per_epoch = steps_per_epoch(len(examples), size)
    epoch, indices = -1, []
    for step in range(start, stop):
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            indices = order(len(examples), seed, epoch)
        at = step % per_epoch * size
        yield [examples[i] for i in indices[at : at + size]]


def share(examples: Sequence[Example], rank: int, ranks: int) -> list[Example]:
    """Return the examples of a step that one of several processes takes, balanced by length."""
    if ranks == 1:
        return list(examples)
    loads, shares = [0] * ranks, [[] for _ in range(ranks)]
    for example in sorted(examples, key=lambda e: -len(e.ids)):
        least = loads.index(min(loads))
        shares[least].append(example)
        loads[least] += len(example.ids)
    return shares[rank]


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    bounds: Sequence[int] = (),
    caches: Sequence[Any] = (),
    kernel: Callable[..., torch.Tensor] | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside each packed example: one call an example, no N x N mask.

    Args:
        module: The attention layer.
        query: (1, heads, N, head size); key and value may have fewer heads.
        key: See query.
        value: See query.
        attention_mask: None; the bounds say it all.
        scaling: Factor of the scores; 1 / sqrt(head size) by default.
        dropout: Probability that an attention weight is dropped.
        sliding_window: Number of positions, itself included, that a token sees.
        softcap: Bound of the scores: softcap * tanh(score / softcap).
        bounds: Where the examples start and end: 0, the end of the first, ..., N.
        caches: For each example what adds its keys and values to those of earlier tokens and returns all
            (``lmf.generate.caches.Cache``); none in training.
        kernel: What computes it where there are neither caches nor dropout; ``lmf.layers.attention`` is its definition.

    Returns:
        (1, N, heads, head size), and no weights.
    """
    assert bounds and attention_mask is None
    if kernel and not caches and not dropout:
        dtype = autocast_dtype(query)
        q, k, v = (x[0].transpose(0, 1).to(dtype) for x in (query, key, value))
        return kernel(q, k, v, bounds, scale=scaling, window=sliding_window, softcap=softcap)[None], None
    lengths = [end - start for start, end in itertools.pairwise(bounds)]
    outputs = []
    # split, not sliced: the gradient of a slice is as large as what it was cut from
    for number, (q, k, v) in enumerate(zip(*(x.split(lengths, dim=2) for x in (query, key, value)), strict=True)):
        if caches:
            k, v = caches[number].extend(module.layer_idx, k, v)
        if sliding_window is not None:  # what no query sees
            k, v = (x[:, :, -(sliding_window + q.shape[2] - 1) :] for x in (k, v))
        outputs.append(attend(q, k, v, scaling, dropout, sliding_window, softcap).transpose(1, 2))
    return torch.cat(outputs, dim=1), None


def attention_by(parts: Parts) -> str:
    """Return the name by which transformers knows ``attention`` as these parts compute it."""
    if "attention" not in parts.kernels:
        return ATTENTION
    assert callable(parts.attention), "this one wants padded rows"
    name = f"{ATTENTION}_{parts.kernels['attention']}"
    AttentionInterface.register(name, partial(attention, kernel=parts.attention))
    AttentionMaskInterface.register(name, _no_mask)
    return name


def _no_mask(*_: Any, **__: Any) -> None:
    return None


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, _no_mask)
