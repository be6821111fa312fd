"""How the next token is chosen: the distribution that settings make of a model's logits, and a draw from it.

Shapes: V is the number of tokens that the model knows.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import torch

from ..settings import Sampling


def distribution(
    logits: torch.Tensor, sampling: Sampling, prompt: Sequence[int] = (), written: Sequence[int] = ()
) -> torch.Tensor:
    """Return the probabilities from which the next token is drawn: (V,), float64.

    The order is that of transformers: penalties, temperature, top-k, top-p, min-p. At temperature 0 the first of the
    likeliest tokens has probability 1.

    Args:
        logits: The model's; (V,).
        sampling: The settings.
        prompt: Ids of the prompt.
        written: Ids of the reply so far.
    """
    logits = _penalized(logits.double(), sampling, prompt, written)
    if sampling.temperature == 0:
        return torch.zeros_like(logits).index_fill_(0, logits.argmax(), 1.0)
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(sampling.top_k).values[-1], -torch.inf)
    if sampling.top_p < 1:
        ordered, ids = logits.softmax(0).sort(descending=True)
        before = ordered.cumsum(0) - ordered
        logits = logits.index_fill(0, ids[before >= sampling.top_p], -torch.inf)  # the first one always stays
    probabilities = logits.softmax(0)
    if sampling.min_p:
        probabilities = probabilities.where(probabilities >= sampling.min_p * probabilities.max(), 0.0)
        probabilities = probabilities / probabilities.sum()
    return probabilities


def draw(probabilities: torch.Tensor, chance: random.Random) -> int:
    """Return a token drawn from a distribution, which need not sum to 1; (V,). Of one that is no number, the first."""
    sums = probabilities.cumsum(0)
    total = float(sums[-1])
    if not math.isfinite(total):  # whoever reads the log-probability of the token sees it
        return 0
    at = min(total * chance.random(), math.nextafter(total, 0.0))  # the product may be rounded up to the total
    return int(torch.searchsorted(sums, at, right=True))


def _penalized(logits: torch.Tensor, sampling: Sampling, prompt: Sequence[int], written: Sequence[int]) -> torch.Tensor:
    """Return the logits less the penalties for tokens that are there already.

    Args:
        logits: The model's; (V,).
        sampling: The settings.
        prompt: Ids of the prompt.
        written: Ids of the reply so far.
    """
    if sampling.repetition_penalty != 1:
        seen = torch.tensor(sorted({*prompt, *written}), device=logits.device)
        found, factor = logits[seen], sampling.repetition_penalty
        logits = logits.index_copy(0, seen, torch.where(found > 0, found / factor, found * factor))
    if written and sampling.penalized:
        ids, counts = torch.tensor(written, device=logits.device).unique(return_counts=True)
        cost = sampling.presence_penalty + sampling.frequency_penalty * counts
        logits = logits.index_add(0, ids, -cost.to(logits.dtype))
    return logits
