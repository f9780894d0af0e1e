"""Reading a view of which little is in memory: whole blocks of rows, asked for one window ahead.

A memory map is the fastest way to rows that the system holds already, and a slow one to those that it doesn't: each
row is a page fault that waits for the disk. Where keys come in an order that stays within a window of blocks for a
while (``training.plan.Windows``), blocks are read whole into a pool of fixed size, and the system is told of the next
window's before they are needed.
"""

from __future__ import annotations

import math
import os
from collections import deque

import numpy as np

from softcache.cache.reader import Cache
from softcache.cache.shard import Extent
from softcache.errors import IntegrityError


class BlockReader:
    """Rows of one column of one view, for keys that come in the order that is given.

    ``order``: (K,) int64, all keys that ``gather`` is going to be asked for, in that order. ``block_rows``: rows of a
    block, a power of two; ``window``: blocks that an order stays within. Two windows' blocks are held, no more.
    """

    def __init__(self, cache: Cache, column: str, view: int, order: np.ndarray, block_rows: int, window: int):
        self._cache, self._column, self._view = cache, column, view
        self._shard_rows = cache.manifest.shard_rows(column)
        self._block_rows = min(block_rows, self._shard_rows)
        split = block_rows // self._block_rows  # shards of hints may be smaller than a block
        blocks = -(-cache.rows // self._block_rows)
        self._slots = min(2 * window * split, blocks)
        self._pools = {
            name: np.empty(shape, dtype)
            for name, (dtype, shape) in cache.arrays(column, self._slots * self._block_rows).items()
        }
        self._slot_of = np.full(blocks, -1, np.int64)
        self._held: deque[int] = deque()
        self._free = list(range(self._slots))
        self._extents: dict[int, dict[str, Extent]] = {}
        self._order, self._at, self._advised_to = order, 0, 0
        self._ahead = window * block_rows  # keys of a window

    @property
    def nbytes(self) -> int:
        """Memory that the blocks take, however many rows the cache has."""
        return sum(pool.nbytes for pool in self._pools.values())

    def gather(self, rows: np.ndarray, out: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """The next keys' rows of each array, (B, ...): as ``ColumnReader.gather``."""
        if self._advised_to < min(self._at + self._ahead // 2, len(self._order)):
            self._advise()
        self._at += len(rows)
        block = rows // self._block_rows
        slots = self._slot_of[block]
        if (slots < 0).any():
            self._load(np.unique(block[slots < 0]), np.unique(block))
            slots = self._slot_of[block]
        place = slots * self._block_rows + rows % self._block_rows
        if out is None:
            out = {n: np.empty((len(rows), *pool.shape[1:]), pool.dtype) for n, pool in self._pools.items()}
        for name, pool in self._pools.items():
            np.take(pool, place, axis=0, out=out[name], mode="clip")
        return out

    def _load(self, missing: np.ndarray, needed: np.ndarray) -> None:
        if len(needed) > self._slots:
            raise AssertionError(f"a batch touches {len(needed)} blocks, {self._slots} can be held")
        kept = set(needed.tolist())
        for block in missing.tolist():
            if not self._free:
                for _ in range(len(self._held)):
                    oldest = self._held.popleft()
                    if oldest not in kept:
                        self._free.append(int(self._slot_of[oldest]))
                        self._slot_of[oldest] = -1
                        break
                    self._held.append(oldest)
            slot = self._free.pop()
            self._read(block, slot)
            self._slot_of[block] = slot
            self._held.append(block)

    def _read(self, block: int, slot: int) -> None:
        number, first, rows = self._where(block)
        path = self._cache.shard_path(self._view, self._column, number)
        fd = os.open(path, os.O_RDONLY)
        try:
            for name, extent in self._shard(number).items():
                at = slot * self._block_rows
                target = self._pools[name][at : at + rows].view(np.uint8).data.cast("B")
                row_bytes = extent.nbytes // extent.shape[0]
                offset = extent.offset + first * row_bytes
                while target:
                    got = os.preadv(fd, [target], offset)
                    if not got:
                        raise IntegrityError(f"{path} has been truncated")
                    target, offset = target[got:], offset + got
        finally:
            os.close(fd)

    def _advise(self) -> None:
        """Tells the system of the blocks of the window after the one that is being read."""
        upto = min(self._at + 2 * self._ahead, len(self._order))
        wanted = np.unique(self._order[self._advised_to : upto] // self._block_rows)
        self._advised_to = upto
        if not hasattr(os, "posix_fadvise"):  # macOS: reads aren't asked for ahead there
            return
        by_shard: dict[int, list[tuple[int, int]]] = {}
        for block in wanted[self._slot_of[wanted] < 0].tolist():
            number, first, rows = self._where(block)
            by_shard.setdefault(number, []).append((first, rows))
        for number, spans in by_shard.items():
            fd = os.open(self._cache.shard_path(self._view, self._column, number), os.O_RDONLY)
            try:
                for extent in self._shard(number).values():
                    row_bytes = math.prod(extent.shape[1:]) * extent.dtype.itemsize
                    for first, rows in spans:
                        place = extent.offset + first * row_bytes
                        os.posix_fadvise(fd, place, rows * row_bytes, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(fd)

    def _where(self, block: int) -> tuple[int, int, int]:
        """A block's shard, its first row in it, and its number of rows."""
        number, first = divmod(block * self._block_rows, self._shard_rows)
        _, rows = self._cache.shard_range(self._column, number)
        return number, first, min(self._block_rows, rows - first)

    def _shard(self, number: int) -> dict[str, Extent]:
        if number not in self._extents:
            self._extents[number] = self._cache.extents(self._view, self._column, number)
        return self._extents[number]
