"""Means and differences with 95 % intervals, from few runs of each row.

With three to five seeds a row's own spread says little, so the spread is pooled: the rows of a table are assumed to
scatter alike, which the page lets everybody check, because it lists all runs.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import t

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Pooled:
    """``deviation``: the standard deviation of a single run, pooled over rows; ``freedom``: its degrees of freedom."""

    deviation: float
    freedom: int

    def half_width(self, *counts: int) -> float:
        """Half of the interval of a mean of so many runs, or of the difference of two such means."""
        return float(t.ppf((1 + CONFIDENCE) / 2, self.freedom)) * self.deviation * math.sqrt(sum(1 / n for n in counts))


def pool(rows: Mapping[str, Sequence[float]]) -> Pooled:
    """The pooled standard deviation of rows of runs, each row around its own mean.

    Errors: ``ValueError`` where no row has two runs.
    """
    freedom = sum(len(values) - 1 for values in rows.values() if values)
    if freedom < 1:
        raise ValueError("no row has two runs, so nothing is known of the spread")
    squares = sum((len(values) - 1) * statistics.variance(values) for values in rows.values() if len(values) > 1)
    return Pooled(math.sqrt(squares / freedom), freedom)


def difference(rows: Mapping[str, Sequence[float]], one: str, other: str) -> tuple[float, float]:
    """(mean of ``one`` less mean of ``other``, half of its interval), with the spread of all ``rows``."""
    pooled, a, b = pool(rows), rows[one], rows[other]
    return statistics.mean(a) - statistics.mean(b), pooled.half_width(len(a), len(b))


def better(found: tuple[float, float]) -> bool:
    """Whether the interval of a difference is above 0."""
    return found[0] - found[1] > 0


def as_good(found: tuple[float, float], margin: float) -> bool:
    """Whether the interval of a difference lies within ± ``margin``."""
    return abs(found[0]) + found[1] <= margin
