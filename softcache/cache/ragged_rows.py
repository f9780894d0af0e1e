"""Rows of a ragged column by number, out of maps of its shards."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import numpy as np

from softcache.cache.checksum import is_intact
from softcache.cache.chunked_rows import ChunkMemory
from softcache.cache.column import DIGEST, OFFSET, Column
from softcache.cache.mapping import MappedRows, map_column, map_shards
from softcache.cache.schema import ROWS, length_array
from softcache.cache.shard import Opened
from softcache.errors import IntegrityError
from softcache.inputs import MAX_LENGTH
from softcache.ragged import Int64, offsets_of, runs_of

if TYPE_CHECKING:
    from softcache.cache.reader import Cache


class RaggedRows:
    """Where the places of rows lie in the shards of a column, which is the same in every view.

    ``places``: of each shard's rows, (rows,) int64 each. ``tails``: of each array of the column, name → dtype and shape
    of one place.
    """

    def __init__(self, places: Sequence[Int64], tails: Mapping[str, tuple[np.dtype, tuple[int, ...]]]):
        self._tails = {name: spec for name, spec in tails.items() if name not in (DIGEST, OFFSET)}
        # Of each row where its places begin in its shard, and how many they are: side by side, so that a batch of rows
        # in any order is looked up at once.
        self._where = np.empty((sum(map(len, places)), 2), np.int64)
        self._ends: list[int] = []
        at = 0
        for some in places:
            offset = offsets_of(some)
            self._where[at : at + len(some), 0] = offset[:-1]
            self._where[at : at + len(some), 1] = some
            self._ends.append(int(offset[-1]))
            at += len(some)

    @classmethod
    def of(cls, cache: Cache, column: Column) -> RaggedRows:
        """Those of a cache's column. Errors: ``IntegrityError`` where ``rows.h5`` isn't what the manifest says."""
        # Memory is taken for as many rows as the manifest says. Lengths are read from the file, which has to have as
        # many; a share has none to read. The file may be missing, where a repair took it away.
        if column.share is not None and (cache.folder / ROWS).exists():
            with cache.rows_file():
                pass
        ranges = (cache.shard_range(column.name, number) for number in range(cache.manifest.shards(column.name)))
        tails = {name: (np.dtype(dtype), shape[1:]) for name, (dtype, shape) in column.arrays(1).items()}
        return cls([cache.places(column.name, *some) for some in ranges], tails)

    def map(
        self, shards: Sequence[AbstractContextManager[Opened]], memory: Mapping[str, ChunkMemory]
    ) -> dict[str, MappedRows]:
        """The arrays of a view's shards. ``memory``: of those that are compressed.

        Errors: ``IntegrityError`` where a shard has other numbers of places; those of opening them.
        """
        maps = map_column(shards, memory, dict.fromkeys(self._tails, max(self._ends)))
        for name in self._tails:
            for count, end in zip(maps[name].lengths, self._ends, strict=True):
                if count != end:  # shards are checked against lengths in a file, which somebody may write to
                    raise IntegrityError(f"lengths of rows have changed while they were read: {count} was {end}")
        return maps

    def places(self, rows: np.ndarray) -> Int64:
        """How many places rows (B,) have."""
        return self._where[:, 1].take(rows)

    @functools.cached_property
    def offset(self) -> Int64:
        """(N + 1,) where the places of all rows begin, end to end."""
        return offsets_of(self._where[:, 1])

    def index(self, rows: np.ndarray) -> Int64:
        """(P,) where the places of rows (B,) lie among those of all rows end to end."""
        return runs_of(self.offset.take(rows), offsets_of(self.places(rows)))

    def find(self, rows: np.ndarray) -> tuple[Int64, Int64]:
        """Where the places of rows (B,) begin in their shards, (B,), and where they begin end to end, (B + 1,)."""
        where = self._where.take(rows, axis=0)
        return where[:, 0], offsets_of(where[:, 1])

    def gather(self, maps: Mapping[str, MappedRows], rows: np.ndarray, part: np.ndarray) -> dict[str, np.ndarray]:
        """``digest`` (B,), ``offset`` (B + 1,) and the places (P, …) of rows (B,) int64, which must be in range, end to
        end. ``part``: the shard of each row."""
        first, offset = self.find(rows)
        out: dict[str, np.ndarray] = {DIGEST: np.empty(len(rows), np.uint32), OFFSET: offset}
        maps[DIGEST].take(rows, out[DIGEST], part)
        for name, (dtype, tail) in self._tails.items():
            out[name] = np.empty((int(offset[-1]), *tail), dtype)
            maps[name].take_runs(part, first, offset, out[name])
        return out


def read_lengths(file: Opened, name: str) -> Int64:
    """(N,) how long each row of an input is, out of an open ``rows.h5``. Errors: ``IntegrityError`` naming the file."""
    array = length_array(name)
    if not is_intact(file, array):
        raise IntegrityError(f"{file.path} is damaged: {array} doesn't match its checksum")
    found = map_shards([contextlib.nullcontext(file)], join=False)[array].parts[0]
    if found.min() < 0 or found.max() > MAX_LENGTH:
        raise IntegrityError(f"{file.path} has rows of {name} of lengths that no row can have")
    return found
