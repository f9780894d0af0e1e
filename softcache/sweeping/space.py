"""What trials are drawn from: lists of values, and ranges such as ``0.01..0.5``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from softcache.config.several import GRID
from softcache.errors import UsageError

LOGARITHMIC = ("lr", "weight_decay")  # their effect goes with their size
WHOLE = ("epochs", "batch_size", "views", "accumulate")
RANGED = ("T", "alpha", "beta", "fresh_share", "momentum", "warmup", "gamma", "label_smoothing", "clip_grad")
_RANGE = re.compile(r"\s*([^\s.]*\.?[^\s.]*)\s*\.\.\s*([^\s.]*\.?[^\s.]*)\s*")
DIGITS = 4  # significant ones of a number that is drawn, so that commands stay readable


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both of them among these; ``log``: drawn by their logarithm; ``whole``: whole
    numbers only."""

    low: float
    high: float
    log: bool = False
    whole: bool = False


def is_range(value: Any) -> bool:
    """Whether a value of an option is a range.

    >>> is_range("0.01..0.5"), is_range("8:2:linear"), is_range("../net.py:make")
    (True, False, False)
    """
    if not isinstance(value, str):
        return False
    match = _RANGE.fullmatch(value)
    return match is not None and all(_number(text) is not None for text in match.groups())


def space(options: Mapping[str, Any]) -> dict[str, Range | tuple[Any, ...]]:
    """Options in ``GRID`` that have several values or a range → what is drawn.

    Errors: ``UsageError`` for a range of an option that has none, and for one whose ends can't be.
    """
    found: dict[str, Range | tuple[Any, ...]] = {}
    for name in GRID:
        values = options.get(name, ())
        ranges = [value for value in values if is_range(value)]
        if ranges:
            found[name] = _range(name, ranges[0], len(values))
        elif len(values) > 1:
            found[name] = tuple(values)
    return found


def refuse_ranges(options: Mapping[str, Any]) -> None:
    """Errors: ``UsageError`` where a grid, which has values alone, is asked for a range."""
    for name in GRID:
        for value in options.get(name, ()):
            if is_range(value):
                option = name.replace("_", "-")
                raise UsageError(f"--{option} {value} is a range, and a grid has values: list them, or add --trials N")


def rounded(value: float) -> float:
    """A number as it is trained with."""
    return float(f"{value:.{DIGITS}g}")


def _range(name: str, text: str, count: int) -> Range:
    option = name.replace("_", "-")
    if count > 1:
        raise UsageError(f"--{option} has a range and other values: give one range, or a list")
    if name not in (*LOGARITHMIC, *WHOLE, *RANGED):
        raise UsageError(f"--{option} {text}: it has no range: list its values")
    match = _RANGE.fullmatch(text)
    assert match is not None
    low, high = (_number(part) for part in match.groups())
    assert low is not None
    assert high is not None
    if low >= high or (name in LOGARITHMIC and low <= 0):
        raise UsageError(f"--{option} {text}: a range goes up" + (", from above 0" if name in LOGARITHMIC else ""))
    if name in WHOLE and (low != int(low) or high != int(high)):
        raise UsageError(f"--{option} {text}: whole numbers only")
    return Range(low, high, name in LOGARITHMIC, name in WHOLE)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
