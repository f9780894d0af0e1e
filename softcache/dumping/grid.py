"""Which rows the teacher sees together, and the way back from there to the order of rows."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import torch

from softcache.cache.column import DIGEST, OFFSET
from softcache.cache.schema import Grid
from softcache.cache.writer import Block, BlockWriter
from softcache.ragged import Int64, counts_of, offsets_of, runs_of


def rows_together(
    grid: Grid, first: int, rows: int, lengths: Mapping[str, Int64] = MappingProxyType({})
) -> list[Int64]:
    """The batches of a block of ``rows`` rows from ``first`` on: row numbers, int64 each. ``lengths``: (N,) of the
    inputs whose rows have lengths of their own, of which ``grid.bucket`` names one.

    >>> [batch.tolist() for batch in rows_together(Grid(8, 2, "ids"), 8, 5, {"ids": np.r_[[0] * 8, 5, 1, 4, 1, 2]})]
    [[9, 11], [12, 10], [8]]
    """
    order = np.arange(first, first + rows)
    if grid.bucket is not None:
        order = order[np.argsort(lengths[grid.bucket][order], kind="stable")]
    return [order[k : k + grid.batch] for k in range(0, rows, grid.batch)]


class InRowOrder:
    """A block's batches on their way to its writer. Where rows of like length came together, all of the block's are
    held until they can be put into the order of rows.

    ``writer``: that of the block, which takes rows in order.
    """

    def __init__(self, writer: BlockWriter, block: Block, *, sorted_by_length: bool):
        self._writer, self._block, self._hold = writer, block, sorted_by_length
        self._rows: list[Int64] = []
        self._columns: list[dict[str, dict[str, np.ndarray]]] = []
        self._said: list[dict[str, torch.Tensor]] = []

    def write(self, rows: Int64, columns: dict[str, dict[str, np.ndarray]], said: dict[str, torch.Tensor]) -> None:
        """``rows`` (B,): their numbers; ``columns``, ``said``: as ``BlockWriter.write`` takes them, of these rows."""
        if not self._hold:
            self._writer.write(int(rows[0]), columns, said)
            return
        self._rows.append(rows)
        self._columns.append(columns)
        self._said.append(said)
        if sum(map(len, self._rows)) < self._block.rows:
            return
        order = np.argsort(np.concatenate(self._rows))
        ordered, offsets = {}, {}
        for name in columns:
            parts = [each[name] for each in self._columns]
            ordered[name], offsets[name] = _in_order(parts, order)
        now = {}
        for name in said:
            index = order if offsets[name] is None else offsets[name]
            now[name] = torch.cat([each[name] for each in self._said])[torch.from_numpy(index)]
        self._rows, self._columns, self._said = [], [], []
        self._writer.write(self._block.first, ordered, now)

    def abort(self) -> None:
        """Drops the shards that are not finished."""
        self._writer.abort()


def _in_order(parts: list[dict[str, np.ndarray]], order: Int64) -> tuple[dict[str, np.ndarray], Int64 | None]:
    """A column's arrays of several batches as those of one whose rows are in ``order``, and of a ragged column where
    its places come from."""
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0] if name != OFFSET}
    if OFFSET not in parts[0]:
        return {name: array[order] for name, array in joined.items()}, None
    counts = np.concatenate([counts_of(part[OFFSET]) for part in parts])
    offset = offsets_of(counts[order])
    places = runs_of(offsets_of(counts)[order], offset)
    arrays = {name: array[order if name == DIGEST else places] for name, array in joined.items()}
    return {**arrays, OFFSET: offset}, places
