"""Figures with their intervals: where the true value lies with a confidence of 95 %, if the items are a sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Z = 1.959963984540054  # of the standard normal distribution: 95 % lie within
RESAMPLES = 1000
SEED = 0
WILSON, BOOTSTRAP = "Wilson", "bootstrap"


@dataclass(frozen=True)
class Figure:
    """A figure with its 95 % interval, the interval's method, and the number of items it is of.

    ``value`` is None where there is nothing to count, and the interval where that tells nothing of other items.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    method: str
    count: int


def proportion(name: str, hits: int, count: int) -> Figure:
    """Return the part of ``count`` items that are hits. Source of the interval: Wilson, 1927."""
    if count == 0:
        return Figure(name, None, None, None, WILSON, 0)
    share, weight = hits / count, Z * Z / count
    middle = (share + weight / 2) / (1 + weight)
    half = Z * math.sqrt(share * (1 - share) / count + weight / (4 * count)) / (1 + weight)
    return Figure(name, share, max(0.0, middle - half), min(1.0, middle + half), WILSON, count)


def resampled(name: str, rows: Sequence[Sequence[float]], statistic: Callable[[np.ndarray], float | None]) -> Figure:
    """Return a statistic of ``rows [items, values]``, with the percentiles of it in samples drawn from the items.

    The same rows give the same interval. Source: Efron, "Bootstrap Methods", 1979.
    """
    values = np.asarray(rows, dtype=np.float64)
    value = statistic(values) if len(values) else None
    if value is None:
        return Figure(name, None, None, None, BOOTSTRAP, len(values))
    if len(values) == 1:
        return Figure(name, value, None, None, BOOTSTRAP, 1)
    generator = np.random.default_rng(SEED)
    drawn = [statistic(values[generator.integers(len(values), size=len(values))]) for _ in range(RESAMPLES)]
    low, high = np.percentile([it for it in drawn if it is not None], [2.5, 97.5])
    return Figure(name, value, float(low), float(high), BOOTSTRAP, len(values))


def mean(name: str, values: Sequence[float]) -> Figure:
    """Return the mean of one value an item."""
    return resampled(name, [[value] for value in values], lambda rows: float(rows[:, 0].mean()))


def ratio(name: str, pairs: Sequence[tuple[float, float]]) -> Figure:
    """Return the sum of the first values by the sum of the second, such as tokens that agree by all tokens."""
    return resampled(name, pairs, lambda rows: float(rows[:, 0].sum() / total) if (total := rows[:, 1].sum()) else None)


def median(name: str, values: Sequence[float]) -> Figure:
    """Return the median of one value an item."""
    return resampled(name, [[value] for value in values], lambda rows: float(np.median(rows[:, 0])))
