"""How a report writes numbers: each kind in one way, on the whole page."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from softcache.sweeping.statistics import deviation
from softcache.training.scores import SHARES, TITLES


def unit(leading: str) -> str:
    """What a score's column says after its name: shares are in percent."""
    return ", %" if leading in SHARES else ""


def title(leading: str) -> str:
    """A score's name."""
    return TITLES.get(leading, "score")


def scaled(leading: str, value: float) -> float:
    """A score as it is drawn and written."""
    return 100 * value if leading in SHARES else value


def score(leading: str, value: float) -> str:
    """``97.21``, without a unit."""
    return f"{scaled(leading, value):.{_digits(leading)}f}"


def with_unit(leading: str, value: float) -> str:
    """``97.21 %``."""
    return score(leading, value) + (" %" if leading in SHARES else "")


def spread(leading: str, values: Sequence[float]) -> str:
    """``97.21 ± 0.30``: the mean and the standard deviation of a single student."""
    if not values:
        return "–"
    own = deviation(values)
    around = f" ± {score(leading, own)}" if own is not None else ""
    return score(leading, statistics.mean(values)) + around


def difference(leading: str, value: float) -> str:
    """``+1.20``."""
    return signed(scaled(leading, value), _digits(leading))


def signed(value: float, digits: int) -> str:
    """With a sign, and a true minus; zero has none."""
    text = f"{abs(value):.{digits}f}"
    return text if float(text) == 0 else ("+" if value > 0 else "−") + text


def _digits(leading: str) -> int:
    return 2 if leading in SHARES else 4
