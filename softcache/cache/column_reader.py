"""Rows of one column of a cache, by number, at memory speed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from softcache.cache.chunked_rows import memories
from softcache.cache.column import OFFSET
from softcache.cache.held_views import HeldViews
from softcache.cache.mapping import MappedRows, map_column
from softcache.cache.ragged_rows import RaggedRows
from softcache.cache.row_numbers import out_of_range, row_numbers
from softcache.cache.schema import shard_name
from softcache.cache.shard import opened
from softcache.cache.shares import filled, own_mask
from softcache.errors import UsageError
from softcache.losses._target import Target

if TYPE_CHECKING:
    from softcache.cache.reader import Cache


class ColumnReader:
    """Rows of one column by number, gathered from memory maps that are made per view when first needed. Of a compressed
    column the chunks that were asked for last stay in memory, 256 MiB of them in all views together."""

    def __init__(self, cache: Cache, column: str):
        self.cache = cache
        self.name = column
        self.layout = cache.layout(column)
        self._shard_rows = self.layout.shard_rows
        _ = self.layout.coder  # reads the codec's constants, if it has any
        self._tails = {n: (np.dtype(dtype), shape[1:]) for n, (dtype, shape) in self.layout.arrays(1).items()}
        self.ragged = RaggedRows.of(cache, self.layout) if self.layout.ragged else None
        self._maps: dict[int, dict[str, MappedRows]] = {}
        self._memory = memories(self.layout.chunking, self.layout.row)
        self._views = HeldViews(cache.backing, self.shard_names) if cache.backing is not None else None

    def gather(self, view: int, rows: np.ndarray, out: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """Rows by their numbers, as they are stored, in the order asked for.

        ``rows``: (B,) integers from 0 to the cache's rows - 1, in any order, also more than once; int64 is fastest.
        Result, by name: ``digest`` (B,) uint32, of the pixels; and what the column's codec keeps, which ``decode``
        makes values of. Of a ragged column that is one row a place, (P, …), the places of all rows end to end, and
        ``offset`` (B + 1,) int64 says where each row's begin.
        ``out``: where they are to go, as ``empty`` makes it; by default, and of ragged columns, arrays of their own.

        Errors: ``UsageError`` for rows that the cache doesn't have and for what is no row numbers; ``IntegrityError``
        where a shard of the view is missing or isn't what the manifest says.
        """
        if not isinstance(rows, np.ndarray) or rows.dtype != np.int64 or rows.ndim != 1:
            rows = row_numbers(rows, self.cache.rows)
        # As unsigned numbers negative ones are larger than any row. What lies beyond the last row may not be mapped.
        if len(rows) and int(rows.view(np.uint64).max()) >= self.cache.rows:
            raise out_of_range(rows, self.cache.rows)
        maps = self.map(view)  # compared with the files before anything is allocated for what the manifest says
        part = rows // self._shard_rows
        if self.ragged is not None:
            assert out is None, self.name
            return self.ragged.gather(maps, rows, part)
        out = self.empty(len(rows)) if out is None else out
        for name, mapped in maps.items():
            mapped.take(rows, out[name], part)
        return out

    def decode(self, arrays: Mapping[str, np.ndarray | torch.Tensor]) -> torch.Tensor:
        """What ``gather`` gives, as arrays or as tensors → the column's values (B, …) float32, on the same device; of a
        ragged column (P, …), the places of all rows; of one in ``topk`` logits for T = 1.

        Errors: ``UsageError`` where the arrays are of another column.
        """
        return self.layout.decode(arrays)

    def target(self, arrays: Mapping[str, np.ndarray | torch.Tensor]) -> Target:
        """What a loss is given: as ``decode``, but of a column in ``topk`` ``Leaders``, with logits for each T."""
        return self.layout.target(arrays)

    def padded(self, arrays: Mapping[str, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """What ``gather`` gives of a ragged column → values (B, L, …) float32, filled up to the longest row with 0, and
        (B, L) int64, 1 for a row's own places; L is at least 1. Of a column of a share of the rows (B, …), 0 for rows
        that aren't in it, and (B,). Errors: ``UsageError`` for arrays of another column, or one that isn't ragged."""
        if OFFSET not in arrays:
            raise UsageError(f"rows of {self.name!r} have no lengths of their own: use decode")
        return filled(self.name, self.decode(arrays), arrays[OFFSET]), own_mask(self.name, arrays[OFFSET])

    def empty(self, rows: int) -> dict[str, np.ndarray]:
        """Arrays for so many rows of a column that is not ragged, not filled."""
        assert not self.layout.ragged, self.name
        return {name: np.empty((rows, *tail), dtype) for name, (dtype, tail) in self._tails.items()}

    def map(self, view: int) -> Mapping[str, MappedRows]:
        """The view's arrays."""
        if view not in self._maps:
            if self._views is not None:
                self._views.hold(view, drop=self.release)
            opening = [self.cache.shard(view, self.name, n) for n in range(self.cache.manifest.shards(self.name))]
            mapping = map_column if self.ragged is None else self.ragged.map
            self._maps[view] = mapping(opening, self._memory)
        return self._maps[view]

    def keep(self, views: int, most: int) -> None:
        """Lets so many views of a compressed column stay in memory once decompressed, up to ``most`` bytes of them."""
        places = self.cache.rows if self.ragged is None else int(self.ragged.offset[-1])
        for memory in self._memory.values():
            memory.keep(views, places, self.cache.manifest.shards(self.name), most)

    def ahead(self, view: int) -> None:
        """Maps a view, and asks the system to read its files now, front to back: rows that are then gathered in any
        order are in memory, or wait for one long read and not each for its own."""
        self.map(view)  # checks the files, which may be missing
        shards = self.cache.manifest.shards(self.name)
        for number in range(shards if hasattr(os, "posix_fadvise") else 0):
            with opened(self.cache.shard_path(view, self.name, number)) as (fd, _):
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)

    def release(self, view: int) -> None:
        """Forgets a view's maps, so that memory and address space don't grow with the number of views."""
        for rows in self._maps.pop(view, {}).values():
            rows.forget()
        if self._views is not None:
            self._views.release(view)

    def soon(self, views: Sequence[int]) -> None:
        """Says which views are going to be mapped next, where they come from a store: they are fetched meanwhile."""
        if self._views is not None:
            self._views.soon(views)

    def shard_names(self, view: int) -> list[str]:
        """The files of a view."""
        return [shard_name(view, self.name, number) for number in range(self.cache.manifest.shards(self.name))]
