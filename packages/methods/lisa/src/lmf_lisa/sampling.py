"""Which layers an interval trains: a function of the seed and the interval's number, and of nothing else.

So every process finds the same layers without talking, and a run that goes on needs nothing saved.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Literal

Sampler = Literal["uniform", "reshuffle", "weighted"]


def drawn(
    sampler: Sampler, seed: int, interval: int, layers: int, active: int, weights: Sequence[float] = ()
) -> tuple[int, ...]:
    """Return the numbers of the layers that an interval trains, in ascending order.

    Args:
        sampler: ``uniform`` draws anew each time (arXiv:2403.17919). ``reshuffle`` goes through all layers before
            it takes one again, in another order each time (arXiv:2404.02827). ``weighted`` draws one after the
            other, each in proportion to its weight among those that are left.
        seed: Seed of the run.
        interval: Number of the interval, from 0.
        layers: How many layers there are.
        active: How many to draw; at most ``layers``.
        weights: With ``weighted``, a number above 0 for each layer.
    """
    if sampler == "reshuffle":
        each = -(-layers // active)  # intervals of a pass
        order = list(range(layers))
        random.Random(f"lisa:{seed}:pass:{interval // each}").shuffle(order)
        start = interval % each * active
        found = order[start : start + active]
        found += order[: active - len(found)]  # the last interval of a pass may lack some
        return tuple(sorted(found))
    chance = random.Random(f"lisa:{seed}:{interval}")
    if sampler == "uniform":
        return tuple(sorted(chance.sample(range(layers), active)))
    # the largest of log(weight) + Gumbel noise are such a draw (arXiv:1903.06059)
    keys = [math.log(weight) - math.log(chance.expovariate(1)) for weight in weights]
    return tuple(sorted(sorted(range(layers), key=keys.__getitem__, reverse=True)[:active]))
