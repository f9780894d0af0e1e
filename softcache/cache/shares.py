"""Columns that are kept for a share of the rows, such as ``hint.layer3:rows=0.25``: which rows these are.

Each row has a number, drawn by a hash of the row alone. The rows of a share are those whose numbers are small, so that
a smaller share's are among a larger one's, and all views, processes and caches of a dataset have the same ones. One row
is in every share. A column of a share is ragged: its rows have one place, which is the whole activation, and the others
none.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from softcache.cache.schema import share_of
from softcache.datasets._hash import UInt64, splitmix64
from softcache.ragged import Int64, mask_of, on_device, own_places, padded

_DRAW = 0x726F7773  # "rows": keeps this draw apart from every other of rows
_PARTS = 10**6  # a share has six decimals
_ALWAYS_AMONG = 4096  # first rows of which the one with the smallest number is in every share


def places_in(share: float, rows: int, first: int = 0, last: int | None = None) -> Int64:
    """How many places a dataset's rows ``first`` to before ``last``, by default all of its ``rows``, have in a column
    that is kept for this share of them: 1 or 0, int64. At least one row has one.

    >>> places_in(0.5, 8).tolist(), places_in(0.25, 8).tolist()
    ([0, 1, 1, 1, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0])
    """
    found = _numbers(first, rows if last is None else last) * np.uint64(_PARTS) < np.uint64(round(share * _PARTS) << 32)
    always = int(_numbers(0, min(rows, _ALWAYS_AMONG)).argmin()) - first
    if 0 <= always < len(found):
        found[always] = True
    return found.astype(np.int64)


def _numbers(first: int, last: int) -> UInt64:
    """One number of 32 bits for each of these rows."""
    rows = np.arange(first, last, dtype=np.uint64)
    return splitmix64(splitmix64(_DRAW) ^ rows) >> np.uint64(32)


def own_values(column: str, values: torch.Tensor, places: Int64, what: str) -> torch.Tensor:
    """What a ragged column has of values (B, …) of some rows, teacher's or student's: (P, …) end to end, on the same
    device, which is not waited for. ``places``: (B,) how many each of these rows has. Of a column of a share these are
    the whole values of its rows, else each row's own of (B, L, …). ``what``: whose values these are, for a message.

    Errors: as ``own_places``.
    """
    if share_of(column) is None:
        return own_places(values, places, what)
    there = np.flatnonzero(places)
    return values if len(there) == len(places) else values.index_select(0, on_device(there, values.device))


def filled(column: str, values: torch.Tensor, offset: npt.ArrayLike) -> torch.Tensor:
    """(P, …) of rows end to end in a ragged column → (B, L, …) filled up to the longest row with 0, at least one place;
    in a column of a share (B, …), 0 for rows that aren't in it. ``offset``: (B + 1,)."""
    found = padded(values, offset)
    return found if share_of(column) is None else found[:, 0]


def own_mask(column: str, offset: npt.ArrayLike) -> torch.Tensor:
    """Of what ``filled`` makes (B, L) int64, 1 for a row's own places; in a column of a share (B,), 1 for its rows."""
    found = mask_of(offset)
    return found if share_of(column) is None else found[:, 0]
