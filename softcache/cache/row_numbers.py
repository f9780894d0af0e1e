"""Numbers of rows that somebody asks a cache for."""

from __future__ import annotations

from typing import Any

import numpy as np

from softcache.errors import UsageError


def row_numbers(rows: Any, count: int) -> np.ndarray:
    """(B,) int64 of integers of any other dtype. ``count``: rows of the cache."""
    rows = np.asarray(rows)
    if rows.dtype.kind not in "iu":
        raise UsageError(f"rows are {rows.dtype}, not integers")
    if rows.ndim != 1:
        raise UsageError(f"rows have shape {rows.shape}, not (B,)")
    if len(rows) and int(rows.max()) >= count:  # before unsigned ones become negative
        raise out_of_range(rows, count)
    return rows.astype(np.int64)


def out_of_range(rows: np.ndarray, count: int) -> UsageError:
    """The error for rows of which at least one is below 0 or not below ``count``."""
    wrong = rows[(rows < 0) | (rows >= count)][0]
    return UsageError(f"row {wrong} is out of range: the cache has {count} rows, from 0 on")
