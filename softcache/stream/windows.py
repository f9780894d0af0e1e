"""A shuffle for caches that don't fit into memory, which reads the disk in long pieces, and when to use it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from softcache.cache.reader import Cache
from softcache.console import size
from softcache.errors import UsageError
from softcache.stream.memory import view_bytes

SHUFFLES = ("auto", "full", "block")
BLOCK_BYTES = 2**20  # read in one piece: long enough for a disk to be fast at it
WINDOW_BYTES = 48 * 2**20  # of all columns; two windows are in memory at any time


@dataclass(frozen=True)
class Windows:
    """Blocks of ``block_rows`` neighbouring rows come in random order; the rows of each ``window`` blocks are shuffled
    together."""

    block_rows: int
    window: int

    def permutation(self, rng: np.random.Generator, rows: np.ndarray) -> np.ndarray:
        """``rows`` (N,) in that order."""
        block = rows // self.block_rows
        there = np.flatnonzero(np.bincount(block))
        window = np.zeros(there[-1] + 1, np.int64)
        window[there] = rng.permutation(len(there)) // self.window  # the one that each block's rows come in
        shuffled = rng.permutation(rows)
        turn = window[shuffled // self.block_rows]
        if len(there) // self.window < 2**16:
            turn = turn.astype(np.uint16)  # numpy sorts these ten times faster
        return shuffled[np.argsort(turn, kind="stable")]


def pick_windows(
    columns: Sequence[tuple[Cache, str]], shuffle: str, available: int, *, per_image: int = 1
) -> tuple[Windows | None, str]:
    """How rows are shuffled (``None`` for a full shuffle of all rows), and a sentence that says why.

    ``auto`` looks at what an epoch reads, one view (or ``per_image``) of each column: where that is more than half of
    ``available`` bytes of memory, a full shuffle would wait for the disk at every row.
    """
    if shuffle not in SHUFFLES:
        raise UsageError(f"--shuffle {shuffle!r} is unknown: {', '.join(SHUFFLES)}")
    rows = columns[0][0].rows if columns else 1
    row_bytes = -(-sum(view_bytes(cache, column) for cache, column in columns) // rows) * per_image
    epoch = row_bytes * rows
    fits = epoch <= available // 2
    compared = f"an epoch reads {size(epoch)}, {size(available)} of memory are available"
    if not columns or shuffle == "full" or (shuffle == "auto" and fits):
        return None, "full shuffle" + (
            "" if not columns else ", as asked for" if shuffle == "full" else f": {compared}"
        )
    block = 1
    while 2 * block * row_bytes <= BLOCK_BYTES * max(1, len(columns)):
        block *= 2
    window = max(2, WINDOW_BYTES // (block * row_bytes))
    why = "as asked for" if shuffle == "block" else compared
    return Windows(block, window), f"shuffle of blocks of {block:,} rows, {window} at a time: {why}"
