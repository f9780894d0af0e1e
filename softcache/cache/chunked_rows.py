"""Rows of a compressed array by number. Chunks are decompressed when a row of them is first asked for, and those that
were asked for last stay in memory, up to a bound."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from softcache.cache.chunk_frames import Chunking
from softcache.cache.extents import Arrays, Compressed
from softcache.errors import IntegrityError
from softcache.ragged import Int64, counts_of, runs_of

HELD_BYTES = 2**28  # of decompressed chunks of a column, where nobody asks for more


class ChunkMemory:
    """How much memory decompressed chunks of one array may take in all views together: ``limit`` bytes, which are
    ``share`` of what its column may take, but always room for a chunk of ``rows`` rows. Threads may read from it at the
    same time."""

    def __init__(self, rows: int, row_bytes: int, share: float = 1.0):
        self.rows, self.limit, self.lock = rows, int(HELD_BYTES * share), threading.RLock()
        self._row_bytes, self._share = row_bytes, share
        self._live: OrderedDict[ChunkedRows, int] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """Bytes that are taken now."""
        return sum(self._live.values())

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk."""
        return self.rows * self._row_bytes

    def keep(self, views: int, rows: int, shards: int, most: int) -> None:
        """Makes room for so many views of ``rows`` rows, each whole, as far as the column may take ``most`` bytes; a
        shard's last chunk may not be full."""
        needed = views * (rows // self.rows + shards) * self.chunk_bytes
        self.limit = max(self.limit, min(needed, int(most * self._share)))

    def claim(self, rows: ChunkedRows, nbytes: int) -> None:
        """Takes memory for a view; where there is too little, those that began longest ago lose theirs."""
        while self._live and self.nbytes + nbytes > self.limit:
            oldest, _ = self._live.popitem(last=False)
            oldest.forget()
        self._live[rows] = nbytes

    def free(self, rows: ChunkedRows) -> None:
        """A view is done with."""
        self._live.pop(rows, None)


def memories(chunking: Mapping[str, Chunking], row: Arrays) -> dict[str, ChunkMemory]:
    """For the arrays of a column, which share ``HELD_BYTES`` by their bytes a row. ``row``: of one row, dtype and shape
    of each."""
    sizes = {name: math.prod(row[name][1]) * np.dtype(row[name][0]).itemsize for name in chunking}
    whole = sum(sizes.values())
    return {name: ChunkMemory(how.rows, sizes[name], sizes[name] / whole) for name, how in chunking.items()}


class _Part(NamedTuple):
    """A shard's array, None where it has no numbers, and the bytes of its file from ``begin`` on."""

    array: Compressed | None
    mapped: np.ndarray
    begin: int
    name: str


class ChunkedRows:
    """Rows of consecutive shards, as ``mapping.MappedRows``. ``dtype`` and ``tail``: of a row."""

    def __init__(self, memory: ChunkMemory, dtype: np.dtype, tail: tuple[int, ...]):
        self.lengths: list[int] = []
        self._memory, self._dtype, self._tail = memory, dtype, tail
        self._parts: list[_Part] = []
        self._first = np.zeros(1, np.int64)  # the number of each shard's first chunk, and at last of all chunks
        self._pool: np.ndarray | None = None
        self._slot = self._chunk = self._used = np.empty(0, np.int64)
        self._turn = 0

    def add(self, array: Compressed | None, rows: int, mapped: np.ndarray, begin: int, name: str) -> None:
        """The next shard, of ``rows`` rows. ``mapped``: the bytes of its file from ``begin`` on; ``name``: the file's,
        for messages."""
        self.lengths.append(rows)
        self._parts.append(_Part(array, mapped, begin, name))
        self._first = np.append(self._first, self._first[-1] + -(-rows // self._memory.rows))

    def take(self, rows: np.ndarray, out: np.ndarray, part: np.ndarray | None = None) -> None:
        """As ``mapping.Rows.take``. Errors: ``IntegrityError`` where a chunk is damaged."""
        if part is None:
            part = rows // self.lengths[0]
        self._take_from(part, rows - part * self.lengths[0], out)

    def take_runs(self, part: np.ndarray, first: np.ndarray, offset: np.ndarray, out: np.ndarray) -> None:
        """As ``mapping.Rows.take_runs``. Errors: as ``take``."""
        self._take_from(part.repeat(counts_of(offset)), runs_of(first, offset), out)

    def between(self, part: int, begin: int, end: int) -> np.ndarray:
        """Rows of one shard. Errors: as ``take``."""
        out = np.empty((end - begin, *self._tail), self._dtype)
        self._take_from(np.full(end - begin, part), np.arange(begin, end), out)
        return out

    def forget(self) -> None:
        """Gives the memory of all chunks back."""
        with self._memory.lock:
            self._memory.free(self)
            self._pool = None

    def _take_from(self, part: Int64, row: Int64, out: np.ndarray) -> None:
        size = self._memory.rows
        with self._memory.lock:
            self._take(self._first[part] + row // size, row % size, out)

    def _take(self, chunk: Int64, row: Int64, out: np.ndarray) -> None:
        if self._pool is None:
            self._begin()
        assert self._pool is not None
        slot = self._slot[chunk]
        self._turn += 1
        if len(slot) and int(slot.min()) < 0:
            if len(slot) > len(self._pool):
                numbers, turn = np.unique(chunk, return_inverse=True)
                if len(numbers) > len(self._pool):  # more than there is room for: some of them after the others
                    for group in range(-(-len(numbers) // len(self._pool))):
                        own = np.flatnonzero(turn // len(self._pool) == group)
                        some = np.empty((len(own), *self._tail), self._dtype)
                        self._take(chunk[own], row[own], some)
                        out[own] = some
                    return
            self._used[slot[slot >= 0]] = self._turn
            self._load(np.unique(chunk[slot < 0]))
            slot = self._slot[chunk]
        self._used[slot] = self._turn
        flat = self._pool.reshape(-1, *self._tail)
        np.take(flat, slot * self._memory.rows + row, axis=0, out=out, mode="clip")

    def _begin(self) -> None:
        chunk_bytes = self._memory.chunk_bytes
        count = int(self._first[-1])
        slots = max(1, min(count, self._memory.limit // chunk_bytes))
        self._memory.claim(self, slots * chunk_bytes)
        self._pool = np.empty((slots, self._memory.rows, *self._tail), self._dtype)
        self._slot = np.full(count, -1, np.int64)  # where each chunk lies
        self._chunk = np.full(slots, -1, np.int64)  # and the other way
        self._used = np.zeros(slots, np.int64)

    def _load(self, chunks: Int64) -> None:
        """Decompresses chunks to where none is, else over those that were asked for longest ago."""
        assert self._pool is not None
        count = len(chunks)
        slots = np.argpartition(self._used, count - 1)[:count] if count < len(self._used) else range(count)
        for chunk, slot in zip(chunks.tolist(), slots, strict=True):
            before = int(self._chunk[slot])
            if before >= 0:
                self._slot[before] = self._chunk[slot] = -1
            self._decode(chunk, self._pool[slot])
            self._slot[chunk], self._chunk[slot] = slot, chunk

    def _decode(self, number: int, out: np.ndarray) -> None:
        part = int(np.searchsorted(self._first, number, side="right")) - 1
        array, mapped, begin, name = self._parts[part]
        assert array is not None, name
        own = number - int(self._first[part])
        at = int(array.chunks.offset[own]) - begin
        try:
            # the rows that fill up the last chunk are nobody's
            array.decode(mapped[at : at + int(array.chunks.stored[own])].data, out[: array.chunks.rows])
        except IntegrityError as error:
            raise IntegrityError(f"{name} {error}") from None
