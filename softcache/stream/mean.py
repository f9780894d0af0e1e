"""Targets that don't go with a view: the mean logits over a row's recorded views (``--targets mean``)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from softcache.cache.reader import Cache
from softcache.cache.schema import LOGITS
from softcache.stream.memory import memory_budget
from softcache.stream.targets import Targets

CHUNK_BYTES = 64 * 2**20


class MeanTargets:
    """Says the same of a row whatever its pixels are, and claims no digests: they are other pixels by intent.

    The means (N, C) float32, one a cache, are computed once; they lie on the device where they fit, else in memory.
    """

    def __init__(self, caches: Sequence[Cache], views: Sequence[int], device: torch.device):
        self.name = "averaged over views"
        self.compared: Sequence[Cache] = ()
        self.seconds = 0.0
        self._device = device
        means = [mean_logits(cache, views) for cache in caches]
        needed = sum(mean.numel() * mean.element_size() for mean in means)
        self._on_device = needed <= memory_budget(device)
        self._means = [mean.to(device) if self._on_device else mean for mean in means]

    def begin(self, views: Sequence[int], batches: Sequence[np.ndarray]) -> None:
        """Nothing to prepare: any view will do."""

    def targets(self, rows: np.ndarray, on_device: torch.Tensor, pixels: torch.Tensor) -> Targets:
        """``rows`` (B,) int64, the same on the device; ``pixels`` are not looked at."""
        if self._on_device:
            return Targets([mean.index_select(0, on_device) for mean in self._means])
        where = torch.from_numpy(rows)
        return Targets([mean.index_select(0, where).to(self._device) for mean in self._means])


def mean_logits(cache: Cache, views: Sequence[int]) -> torch.Tensor:
    """(N, C) float32: each row's logits averaged over views, some rows at a time, summed in float64."""
    reader, classes = cache.column(LOGITS), cache.manifest.identity.classes
    out = torch.empty(cache.rows, classes)
    step = max(1, CHUNK_BYTES // (8 * classes))
    for first in range(0, cache.rows, step):
        rows = np.arange(first, min(first + step, cache.rows))
        total = torch.zeros(len(rows), classes, dtype=torch.float64)
        for view in views:
            total += cache.decode(reader.gather(view, rows))
        out[first : first + len(rows)] = (total / len(views)).float()
    for view in views:
        reader.release(view)
    return out
