"""Means, deviations and intervals of few runs, with Student's t distribution in closed form."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Paired:
    """The differences of two rows of runs, seed by seed: their ``mean``, half of the 95 % interval of it
    (``half_width``), and the two-sided ``p`` of Student's paired t test; both None where there are fewer than two
    pairs. ``pairs``: how many."""

    mean: float
    half_width: float | None
    p: float | None
    pairs: int


def paired(one: Sequence[float], other: Sequence[float]) -> Paired:
    """``one`` less ``other``, which are of the same seeds in the same order, at least one.

    >>> paired([3.0, 5.0], [1.0, 2.0]).mean
    2.5
    """
    differences = [a - b for a, b in zip(one, other, strict=True)]
    mean, count = statistics.mean(differences), len(differences)
    if count < 2:
        return Paired(mean, None, None, count)
    error = statistics.stdev(differences) / math.sqrt(count)
    half = t_quantile((1 + CONFIDENCE) / 2, count - 1) * error
    if error == 0:
        return Paired(mean, 0.0, 1.0 if mean == 0 else 0.0, count)
    return Paired(mean, half, _outside(abs(mean) / error, count - 1), count)


def deviation(values: Sequence[float]) -> float | None:
    """The standard deviation of a single run, None of fewer than two."""
    return statistics.stdev(values) if len(values) > 1 else None


def t_cdf(x: float, freedom: int) -> float:
    """The probability that Student's t of so many degrees of freedom is at most ``x``.

    Source: Abramowitz and Stegun, 26.7.1 and 26.5.2, with the regularized incomplete beta function.
    """
    if x * x < freedom:  # where what lies beyond would be near 1
        inside = _beta(x * x / (freedom + x * x), 0.5, freedom / 2)
        return 0.5 + math.copysign(inside, x) / 2
    tail = _outside(x, freedom) / 2
    return 1 - tail if x >= 0 else tail


def _outside(x: float, freedom: int) -> float:
    """The probability that Student's t lies beyond ``x`` on either side."""
    return _beta(freedom / (freedom + x * x), freedom / 2, 0.5)


def t_quantile(p: float, freedom: int) -> float:
    """The ``x`` with ``t_cdf(x, freedom) == p``, by bisection.

    >>> round(t_quantile(0.975, 4), 6)
    2.776445
    """
    if p < 0.5:
        return -t_quantile(1 - p, freedom)
    low, high = 0.0, 1.0
    while t_cdf(high, freedom) < p:
        high *= 2
    while True:
        middle = (low + high) / 2
        if middle in (low, high):
            return middle
        low, high = (middle, high) if t_cdf(middle, freedom) < p else (low, middle)


def _beta(x: float, a: float, b: float) -> float:
    """The regularized incomplete beta function, for ``x`` from 0 to 1.

    Source: its continued fraction, Abramowitz and Stegun 26.5.8, evaluated by Lentz's method.
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # where the fraction of the other side converges quickly
        return 1 - _beta(1 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    tiny = 1e-300
    c, d = 1.0, 1 / _nonzero(1 - (a + b) * x / (a + 1), tiny)
    value = d
    for m in range(1, 1000):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _nonzero(1 + numerator * d, tiny)
            c = _nonzero(1 + numerator / c, tiny)
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return math.exp(log_front) * value / a


def _nonzero(value: float, tiny: float) -> float:
    return value if abs(value) > tiny else tiny
