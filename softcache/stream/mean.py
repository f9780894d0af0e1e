"""Targets that don't depend on the view: the mean of a row's outputs over its recorded views (``--targets mean``)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from softcache.cache.column_reader import ColumnReader
from softcache.cache.reader import Cache
from softcache.fields import Inputs
from softcache.losses._target import Target
from softcache.ragged import on_device
from softcache.stream.memory import memory_budget
from softcache.stream.parts import Part, Parts
from softcache.stream.targets import Targets

CHUNK_BYTES = 64 * 2**20


class MeanTargets:
    """Gives a row the same target whatever its inputs are. It has no digests: the inputs are meant to be others.

    Where the means of all rows, (N, …) float32 for each output and cache, or (P, …) of all their places, fit ``budget``
    bytes, they are computed once and held on the device. Otherwise nothing is held, and a batch's means are computed
    from the caches whenever it comes. Both give the same numbers. ``budget``: by default a quarter of the memory that
    is available on the device.
    """

    def __init__(
        self,
        outputs: Mapping[str, Sequence[Cache]],
        views: Sequence[int],
        device: torch.device,
        *,
        budget: int | None = None,
    ):
        self.compared: Sequence[Cache] = ()  # their inputs are not those that the teacher saw
        self.seconds = 0.0
        self._views, self._device = tuple(views), device
        self._readers = {name: [cache.column(name) for cache in caches] for name, caches in outputs.items()}
        self._held: dict[str, list[torch.Tensor]] | None = None
        needed = sum(mean_bytes(reader) for readers in self._readers.values() for reader in readers)
        if needed <= (memory_budget(device) if budget is None else budget):
            self._held = self._each(lambda reader: mean_values(reader, views, device))
        self.name = f"averaged over views, held on {device}" if self._held is not None else "averaged batch by batch"

    def begin(self, batches: Sequence[Parts]) -> None:
        """Prepares nothing, because the means are over the same recorded views in every epoch."""

    def soon(self, views: Sequence[int]) -> None:
        """Fetches nothing, as ``begin``."""

    def targets(self, part: Part, rows: torch.Tensor, inputs: Inputs) -> Targets:
        """``rows`` (B,) int64 on the device: those of the part's keys; ``inputs`` are not used."""
        if self._held is None:
            numbers = part.key_rows
            means = self._each(lambda reader: mean_of_rows(reader, self._views, numbers).to(self._device))
            return Targets({name: [*each] for name, each in means.items()})
        found: dict[str, list[Target]] = {}
        for name, held in self._held.items():
            ragged = self._readers[name][0].ragged  # as long in all caches
            index = rows if ragged is None else on_device(ragged.index(part.key_rows), self._device)
            found[name] = [mean.index_select(0, index) for mean in held]
        return Targets(found)

    def _each(self, make: Callable[[ColumnReader], torch.Tensor]) -> dict[str, list[torch.Tensor]]:
        return {name: [make(reader) for reader in readers] for name, readers in self._readers.items()}


def _count(reader: ColumnReader) -> int:
    """How many rows or, of a ragged column, places there are in a view."""
    return reader.cache.rows if reader.ragged is None else int(reader.ragged.offset[-1])


def mean_bytes(reader: ColumnReader) -> int:
    """Bytes of the means of all rows of a column."""
    return _count(reader) * math.prod(reader.layout.shape) * 4


def mean_values(reader: ColumnReader, views: Sequence[int], device: torch.device) -> torch.Tensor:
    """(N, …) float32 on ``device``: each row's values averaged over ``views``, some ``CHUNK_BYTES`` at a time; of a
    ragged column (P, …), those of each place."""
    count, shape = reader.cache.rows, reader.layout.shape
    means = torch.empty(_count(reader), *shape, device=device)
    step = max(1, CHUNK_BYTES * count // max(1, 8 * means.numel()))
    at = 0
    for first in range(0, count, step):
        mean = mean_of_rows(reader, views, np.arange(first, min(first + step, count)))
        means[at : at + len(mean)] = mean.to(device)
        at += len(mean)
    for view in views:
        reader.release(view)
    return means


def mean_of_rows(reader: ColumnReader, views: Sequence[int], rows: np.ndarray) -> torch.Tensor:
    """(B, …) float32 in the host's memory, of a ragged column (P, …): the rows' values averaged over ``views``, summed
    in float64."""
    count = len(rows) if reader.ragged is None else int(reader.ragged.places(rows).sum())
    total = torch.zeros(count, *reader.layout.shape, dtype=torch.float64)
    for view in views:
        total += reader.decode(reader.gather(view, rows))
    return (total / len(views)).float()
