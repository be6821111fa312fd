"""How sure a figure is, and whether two differ.

Every figure is a function of sums over the items (``lmf.Metric``), so all can be drawn again in one way: the bootstrap
(Efron and Tibshirani, 1993), of items for one model and of pairs of items for two. A mean has its standard error by
the formula, and two accuracies are compared by McNemar's exact test (1947).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from lmf import Metric
from lmf.evaluate.task import quotient

RESAMPLES = 1000  # for an error
PAIRED = 10_000  # for a difference, whose p-value is at least 1 / (PAIRED + 1)
LEVEL = 0.95
SEED = 0

Rows = Sequence[Sequence[float]]  # what each item adds to the sums of a figure


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure with its standard error.

    Attributes:
        value: The figure.
        error: The standard error; None of a single item.
    """

    value: float
    error: float | None


@dataclass(frozen=True, slots=True)
class Difference:
    """A figure of two models on the same items.

    Attributes:
        one: Of the first.
        other: Of the second.
        low: The difference, second less first, is in 95% of all drawings above this.
        high: And below this.
        p: How likely a difference as large is where there is none.
        test: The test that says so.
    """

    one: float
    other: float
    low: float
    high: float
    p: float
    test: str


def figure(metric: Metric, rows: Rows) -> Figure:
    """Return a figure of some items."""
    value = metric.total([math.fsum(column) for column in zip(*rows, strict=True)])
    if len(rows) < 2:
        return Figure(value, None)
    array = np.asarray(rows)
    if _is_mean(metric, array):
        return Figure(value, float(array[:, 0].std(ddof=1) / math.sqrt(len(rows))))
    drawn = [metric.total(sums) for sums in _drawn(array, RESAMPLES)]
    finite = [each for each in drawn if math.isfinite(each)]
    return Figure(value, float(np.std(finite, ddof=1)) if len(finite) > 1 else None)


def difference(metric: Metric, one: Rows, other: Rows) -> Difference:
    """Compare a figure of two models.

    Args:
        metric: The figure.
        one: What each item adds for the first model.
        other: The same for the second, in the same order.
    """
    first, second = np.asarray(one), np.asarray(other)
    width = first.shape[1]
    drawn = [
        metric.total(sums[width:]) - metric.total(sums[:width]) for sums in _drawn(np.hstack([first, second]), PAIRED)
    ]
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    values = [metric.total(array.sum(0)) for array in (first, second)]
    both = np.concatenate([first, second])
    if _is_mean(metric, both) and set(np.unique(both[:, 0])) <= {0.0, 1.0}:
        p, test = mcnemar(first[:, 0], second[:, 0]), "McNemar"
    else:
        below = sum(each <= 0 for each in drawn) + 1
        above = sum(each >= 0 for each in drawn) + 1
        p, test = min(1.0, 2 * min(below, above) / (PAIRED + 1)), "bootstrap"
    return Difference(values[0], values[1], float(low), float(high), p, test)


def mcnemar(one: np.ndarray, other: np.ndarray) -> float:
    """Return the p-value of McNemar's exact test: how likely so uneven a split is of the items on which two differ."""
    from scipy.stats import binomtest

    gained, lost = int((one < other).sum()), int((one > other).sum())
    return float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0


def _is_mean(metric: Metric, array: np.ndarray) -> bool:
    return metric.total is quotient and array.shape[1] == 2 and bool((array[:, 1] == 1).all())


def _drawn(array: np.ndarray, times: int) -> np.ndarray:
    """Return the sums of as many items, drawn with replacement; (times, columns)."""
    chance = np.random.default_rng(SEED)
    count = len(array)
    part = max(1, 2_000_000 // count)
    drawn = []
    for start in range(0, times, part):
        weights = chance.multinomial(count, np.full(count, 1 / count), size=min(part, times - start))
        drawn.append(weights @ array)
    return np.concatenate(drawn)
