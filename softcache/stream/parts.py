"""What a batch is made of: parts, each with its rows and the views that they are seen in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Part:
    """Keys of a batch: all ``rows`` (n,) int64 in the first of ``views``, then all in the second, …

    ``fresh``: whether the views are the epoch's own, so that no targets that were recorded go with these pixels.
    ``strong``: whether they are of the strong recipe, where there are two.
    """

    rows: np.ndarray
    views: tuple[int, ...]
    fresh: bool = False
    strong: bool = False

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


def key_rows(parts: Parts) -> np.ndarray:
    """The row of each key of a batch, (B,) int64."""
    return parts[0].key_rows if len(parts) == 1 else np.concatenate([part.key_rows for part in parts])
