"""The cache that is converted: its rows in order, and drawn ones. No shard is used before its checksums are right."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from softcache.cache.chunked_rows import memories
from softcache.cache.column import DIGEST, OFFSET
from softcache.cache.mapping import MappedRows, map_column
from softcache.cache.reader import Cache
from softcache.cache.shard import Opened
from softcache.ragged import Int64, offsets_of, runs_of

HELD_BYTES = 32 << 20  # of decompressed chunks of an array: rows come in order

Stamp = tuple[int, int, int, int]


class Source:
    """``cache``: the one that is read, whose codecs are all open. ``codec``: as ``Cache`` took it.

    Of each column the shard that was read last stays mapped, and no file stays open. A shard whose checksums were
    compared isn't read for them again while its file stays the same.
    """

    def __init__(self, cache: Cache, codec: str | None = None):
        self.cache = cache
        self._verifying = Cache(cache.folder, verify_reads=True, codec=codec)
        self._sound: dict[tuple[int, str, int], Stamp] = {}
        self._mapped: dict[str, tuple[tuple[int, int], Mapping[str, MappedRows]]] = {}

    def rows(self, view: int, column: str, first: int, count: int) -> dict[str, np.ndarray]:
        """Rows ``first ...`` of a view as they are stored: name → (count, …); of a ragged column what its codec keeps
        has one row a place, and ``offset`` (count + 1,) says where each row's begin.

        Errors: ``IntegrityError`` that names the shard where one is missing or damaged.
        """
        size, layout = self.cache.manifest.shard_rows(column), self.cache.layout(column)
        parts, at, left = [], first, count
        while left:
            number, begin = divmod(at, size)
            take = min(left, size - begin)
            held = self._shard(view, column, number)
            ends = begin, begin + take
            own = tuple(int(held[OFFSET].between(0, k, k + 1)[0]) for k in ends) if layout.ragged else ends
            arrays = {name: rows for name, rows in held.items() if name != OFFSET}
            parts.append({name: rows.between(0, *(ends if name == DIGEST else own)) for name, rows in arrays.items()})
            at, left = at + take, left - take
        found = parts[0] if len(parts) == 1 else {n: np.concatenate([part[n] for part in parts]) for n in parts[0]}
        return {**found, OFFSET: offsets_of(self.cache.places(column, first, count))} if layout.ragged else found

    def values(self, column: str, keys: Sequence[tuple[int, Int64]]) -> torch.Tensor:
        """What the column says of keys, (K, …) float32 on the CPU in the order asked for; of a ragged column (P, …),
        the places of all of them. ``keys``: views, and rows of each, of which none stands twice.

        Each shard is read once, whatever the order. Errors: as ``rows``.
        """
        layout, size = self.cache.layout(column), self.cache.manifest.shard_rows(column)
        views = np.concatenate([np.full(len(rows), view) for view, rows in keys])
        rows = np.concatenate([rows for _, rows in keys])
        order = np.lexsort((rows, views))
        shard = np.stack([views[order], rows[order] // size], axis=1)
        bounds = np.flatnonzero(np.any(np.diff(shard, axis=0) != 0, axis=1)) + 1
        parts = []
        for some in np.split(order, bounds):
            view, number = int(views[some[0]]), int(rows[some[0]] // size)
            held, at = self._shard(view, column, number), rows[some] - number * size
            if layout.ragged:
                begins = held[OFFSET].between(0, 0, held[OFFSET].lengths[0])
                at = runs_of(begins[at], offsets_of(begins[at + 1] - begins[at]))
            arrays = {name: _taken(rows, at) for name, rows in held.items() if name not in (DIGEST, OFFSET)}
            parts.append(layout.decode(arrays))
        places = self.cache.places(column).take(rows) if layout.ragged else np.ones(len(rows), np.int64)
        begin = np.empty(len(rows), np.int64)
        begin[order] = offsets_of(places[order])[:-1]
        return torch.cat(parts)[torch.from_numpy(runs_of(begin, offsets_of(places)))]

    def _shard(self, view: int, column: str, number: int) -> Mapping[str, MappedRows]:
        held = self._mapped.get(column)
        if held is None or held[0] != (view, number):
            self._mapped.pop(column, None)
            layout = self.cache.layout(column)
            room = memories(layout.chunking, layout.row)
            for memory in room.values():
                memory.limit = min(memory.limit, HELD_BYTES)
            held = self._mapped[column] = (
                (view, number),
                map_column([self._verified(view, column, number)], room),
            )
        return held[1]

    @contextlib.contextmanager
    def _verified(self, view: int, column: str, number: int) -> Iterator[Opened]:
        with self.cache.shard(view, column, number) as file:
            if self._sound.get((view, column, number)) == _stamp(file.fd):
                yield file
                return
        with self._verifying.shard(view, column, number) as file:
            self._sound[view, column, number] = _stamp(file.fd)
            yield file


def _taken(rows: MappedRows, at: Int64) -> np.ndarray:
    """Rows of the one shard that is mapped, in this order."""
    first = rows.between(0, 0, 0)
    out = np.empty((len(at), *first.shape[1:]), first.dtype)
    rows.take(at, out, np.zeros(len(at), np.int64))
    return out


def _stamp(fd: int) -> Stamp:
    """What stays the same while a file is not written to or replaced."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
