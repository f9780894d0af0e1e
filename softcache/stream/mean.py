"""Targets that don't depend on the view: the mean of a row's logits over its recorded views (``--targets mean``)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from softcache.cache.reader import Cache, ColumnReader
from softcache.cache.schema import LOGITS
from softcache.fields import Inputs
from softcache.stream.memory import memory_budget
from softcache.stream.parts import Part, Parts
from softcache.stream.targets import Targets

CHUNK_BYTES = 64 * 2**20


class MeanTargets:
    """Gives a row the same target whatever its inputs are. It has no digests: the inputs are meant to be others.

    Where the means of all rows, (N, C) float32 for each cache, fit ``budget`` bytes, they are computed once and held on
    the device. Otherwise nothing is held, and a batch's means are computed from the caches whenever it comes. Both give
    the same numbers. ``budget``: by default a quarter of the memory that is available on the device.
    """

    def __init__(
        self, caches: Sequence[Cache], views: Sequence[int], device: torch.device, *, budget: int | None = None
    ):
        self.compared: Sequence[Cache] = ()  # their inputs are not those that the teacher saw
        self.seconds = 0.0
        self._readers, self._views, self._device = [cache.column(LOGITS) for cache in caches], tuple(views), device
        self._held: list[torch.Tensor] | None = None
        if sum(mean_bytes(cache) for cache in caches) <= (memory_budget(device) if budget is None else budget):
            self._held = [mean_logits(reader, views, device) for reader in self._readers]
        self.name = f"averaged over views, held on {device}" if self._held is not None else "averaged batch by batch"

    def begin(self, batches: Sequence[Parts]) -> None:
        """Prepares nothing, because the means are over the same recorded views in every epoch."""

    def targets(self, part: Part, on_device: torch.Tensor, inputs: Inputs) -> Targets:
        """``on_device`` (B,) int64: the rows of the part's keys; ``inputs`` are not used."""
        if self._held is not None:
            return Targets([mean.index_select(0, on_device) for mean in self._held])
        rows = part.key_rows
        return Targets([mean_of_rows(reader, self._views, rows).to(self._device) for reader in self._readers])


def mean_bytes(cache: Cache) -> int:
    """Bytes of the means of all rows of a cache."""
    return cache.rows * cache.layout(LOGITS).width * 4


def mean_logits(reader: ColumnReader, views: Sequence[int], device: torch.device) -> torch.Tensor:
    """(N, C) float32 on ``device``: each row's logits averaged over ``views``, at most ``CHUNK_BYTES`` at a time."""
    count, classes = reader.cache.rows, reader.layout.width
    means = torch.empty(count, classes, device=device)
    step = max(1, CHUNK_BYTES // (8 * classes))
    for first in range(0, count, step):
        rows = np.arange(first, min(first + step, count))
        means[first : first + len(rows)] = mean_of_rows(reader, views, rows).to(device)
    for view in views:
        reader.release(view)
    return means


def mean_of_rows(reader: ColumnReader, views: Sequence[int], rows: np.ndarray) -> torch.Tensor:
    """(B, C) float32 in the host's memory: the rows' logits averaged over ``views``, summed in float64."""
    total = torch.zeros(len(rows), reader.layout.width, dtype=torch.float64)
    for view in views:
        total += reader.decode(reader.gather(view, rows))
    return (total / len(views)).float()
