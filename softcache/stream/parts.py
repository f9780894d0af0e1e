"""What a batch is made of: parts, each with its rows and the views that they are seen in."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True, eq=False)
class Part:
    """Keys of a batch: all ``rows`` (n,) int64 in the first of ``views``, then all in the second, …

    ``fresh``: whether the views are the epoch's own, so that no targets that were recorded go with these pixels.
    ``strong``: whether they are of the strong recipe, where there are two.
    ``spare``: whether the keys stand in for none at all and count for nothing, see ``divided``.
    """

    rows: np.ndarray
    views: tuple[int, ...]
    fresh: bool = False
    strong: bool = False
    spare: bool = False

    def __len__(self) -> int:
        """Number of keys."""
        return len(self.rows) * len(self.views)

    @property
    def key_rows(self) -> np.ndarray:
        """Each key's row, (keys,) int64."""
        return self.rows if len(self.views) == 1 else np.tile(self.rows, len(self.views))

    @property
    def key_views(self) -> np.ndarray:
        """Each key's view, (keys,) int64."""
        return np.repeat(np.asarray(self.views, np.int64), len(self.rows))


Parts = Sequence[Part]  # of one batch, in the order of its keys


def in_view(batches: Iterable[np.ndarray], view: int) -> list[Parts]:
    """Batches of rows, (B,) int64 each, all in one view."""
    return [(Part(rows, (view,)),) for rows in batches]


def divided(parts: Parts, ranks: int) -> list[Parts]:
    """A batch's share for each of ``ranks``: neighbouring rows, the views of each together, as even as can be.

    A share has at least two keys, as batch normalization can't take one sample. Where there are fewer keys than that,
    the last ranks get the first share again, as ``spare``: a network runs on them, and they count for nothing.

    >>> shares = divided([Part(np.arange(5), (0,))], 3)
    >>> [(part.rows.tolist(), part.spare) for (part,) in shares]
    [([0, 1], False), ([2, 3, 4], False), ([0, 1], True)]
    """
    if ranks == 1:
        return [parts]
    rows = sum(len(part.rows) for part in parts)
    used = max(1, min(ranks, rows, sum(map(len, parts)) // 2))
    edges = [rows * k // used for k in range(used + 1)]
    shares: list[Parts] = [_between(parts, first, last) for first, last in itertools.pairwise(edges)]
    return [*shares, *[[replace(part, spare=True) for part in shares[0]]] * (ranks - used)]


def _between(parts: Parts, first: int, last: int) -> Parts:
    """The parts of a batch with only those of its rows, counted through, from ``first`` on and before ``last``."""
    found, at = [], 0
    for part in parts:
        rows = part.rows[max(first - at, 0) : max(last - at, 0)]
        if len(rows):
            found.append(replace(part, rows=rows))
        at += len(part.rows)
    return found


def key_rows(parts: Parts) -> np.ndarray:
    """The row of each key of a batch, (B,) int64."""
    return parts[0].key_rows if len(parts) == 1 else np.concatenate([part.key_rows for part in parts])
