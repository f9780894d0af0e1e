"""A shuffle for caches that don't fit into memory, which reads the disk in long pieces, and when to use it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from softcache.cache.reader import Cache
from softcache.cache.schema import shard_name
from softcache.console import decimal_size, size
from softcache.errors import UsageError
from softcache.stream.memory import view_bytes

SHUFFLES = ("auto", "full", "block", "shards")
BLOCK_BYTES = 2**20  # read in one piece: long enough for a disk to be fast at it
WINDOW_BYTES = 48 * 2**20  # of all columns; two windows are in memory at any time


@dataclass(frozen=True)
class Windows:
    """Blocks of ``block_rows`` neighbouring rows come in random order; the rows of each ``window`` blocks are shuffled
    together. With ``shard_rows`` this is so within ``shards`` shards of so many rows, which come in random order too:
    no row of others comes before all of these have."""

    block_rows: int
    window: int
    shard_rows: int | None = None
    shards: int = 1

    def permutation(self, rng: np.random.Generator, rows: np.ndarray) -> np.ndarray:
        """``rows`` (N,) in that order."""
        block = rows // self.block_rows
        there = np.flatnonzero(np.bincount(block))
        window = np.zeros(there[-1] + 1, np.int64)  # the one that each block's rows come in
        if self.shard_rows is None:
            window[there] = rng.permutation(len(there)) // self.window
        else:
            window[there] = self._within_shards(rng, there)
        shuffled = rng.permutation(rows)
        turn = window[shuffled // self.block_rows]
        if window.max() < 2**16:
            turn = turn.astype(np.uint16)  # numpy sorts these ten times faster
        return shuffled[np.argsort(turn, kind="stable")]

    def _within_shards(self, rng: np.random.Generator, blocks: np.ndarray) -> np.ndarray:
        """The window of each of these blocks: windows that lie within one group of shards, group after group."""
        assert self.shard_rows is not None
        shard = blocks * self.block_rows // self.shard_rows
        there, of_block = np.unique(shard, return_inverse=True)
        group = (rng.permutation(len(there)) // self.shards)[of_block]
        order = np.lexsort((rng.permutation(len(blocks)), group))
        sizes = np.bincount(group)  # blocks of each group
        windows = -(-sizes // self.window)
        begins = np.concatenate([[0], np.cumsum(windows)[:-1]])
        within = np.arange(len(blocks)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        window = np.empty(len(blocks), np.int64)
        window[order] = np.repeat(begins, sizes) + within // self.window
        return window


def parse_shuffle(text: str) -> tuple[str, int | None]:
    """How rows are shuffled, and of ``shards:40`` how many shards at a time.

    Errors: ``UsageError`` for what is unknown.
    """
    kind, colon, count = text.partition(":")
    if kind not in SHUFFLES or (colon and (kind != "shards" or not count.isdecimal() or not int(count))):
        raise UsageError(f"--shuffle {text!r} is unknown: {', '.join(SHUFFLES)}, shards:N")
    return kind, int(count) if count else None


def pick_windows(
    columns: Sequence[tuple[Cache, str]],
    shuffle: str,
    available: int,
    *,
    per_image: int = 1,
    room: int | None = None,
) -> tuple[Windows | None, str]:
    """How rows are shuffled (``None`` for a full shuffle of all rows), and a sentence that says why.

    ``auto`` looks at what an epoch reads, one view (or ``per_image``) of each column: where that is more than half of
    ``available`` bytes of memory, a full shuffle would wait for the disk at every row. ``room``: bytes of this machine
    for files of stores; where an epoch has more, whole shards come in random order, so that each is fetched once an
    epoch. Half of the room has those that are read, the other half those that come next.

    Errors: ``UsageError`` where the room is too small for that.
    """
    kind, count = parse_shuffle(shuffle)
    rows = columns[0][0].rows if columns else 1
    row_bytes = -(-sum(view_bytes(cache, column) for cache, column in columns) // rows) * per_image
    epoch = row_bytes * rows
    afar = any(cache.remote is not None for cache, _ in columns)
    if columns and (kind == "shards" or (kind == "auto" and afar and room is not None and epoch > room)):
        return _of_shards(columns, row_bytes, count, room, per_image)
    if afar and room is not None and epoch > room:
        raise UsageError(
            f"--local-size leaves {decimal_size(room)} for shards, and --shuffle {kind} needs all of an epoch there, "
            f"{decimal_size(epoch)}: raise it, or use --shuffle shards"
        )
    fits = epoch <= available // 2
    compared = f"an epoch reads {size(epoch)}, {size(available)} of memory are available"
    if not columns or kind == "full" or (kind == "auto" and fits):
        return None, "full shuffle" + ("" if not columns else ", as asked for" if kind == "full" else f": {compared}")
    block, window = _blocks(columns, row_bytes)
    why = "as asked for" if kind == "block" else compared
    return Windows(block, window), f"shuffle of blocks of {block:,} rows, {window} at a time: {why}"


def _blocks(columns: Sequence[tuple[Cache, str]], row_bytes: int) -> tuple[int, int]:
    """Rows of a block, and blocks of a window."""
    block = 1
    while 2 * block * row_bytes <= BLOCK_BYTES * max(1, len(columns)):
        block *= 2
    return block, max(2, WINDOW_BYTES // (block * row_bytes))


def _of_shards(
    columns: Sequence[tuple[Cache, str]], row_bytes: int, count: int | None, room: int | None, per_image: int
) -> tuple[Windows, str]:
    shard_rows = max(cache.manifest.shard_rows(column) for cache, column in columns)
    # what a column's largest shard takes, with its offsets, digests and what describes it
    each = sum(_largest(cache, column, shard_rows) for cache, column in columns) * per_image
    if count is None:
        if room is None:
            raise UsageError("--shuffle shards needs a number here, as no cache is read from a store: shards:40")
        count = room // 2 // each
    if count < 1 or (room is not None and count * each > room):
        raise UsageError(
            f"--local-size leaves {decimal_size(room or 0)} for shards, and {decimal_size(max(2, count) * each)} are "
            f"needed for {max(2, count)} of each column: raise it"
        )
    block, window = _blocks(columns, row_bytes)
    return Windows(min(block, shard_rows), window, shard_rows, count), (
        f"shuffle of shards of {shard_rows:,} rows, {count} at a time (--shuffle shards:{count})"
    )


def _largest(cache: Cache, column: str, rows: int) -> int:
    """Bytes that the files of so many rows of a column take at most in one view."""
    if cache.remote is not None:
        names = [shard_name(0, column, number) for number in range(cache.manifest.shards(column))]
        sizes = [cache.remote.bytes_of([name]) for name in names if name in cache.remote.listing.files]
        return max(sizes, default=0) * (rows // cache.manifest.shard_rows(column))
    return view_bytes(cache, column) * rows // cache.rows
