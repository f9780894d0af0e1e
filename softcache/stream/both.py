"""Recorded views with their own targets and fresh views with means, side by side (``--targets both``)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from softcache.cache.reader import Cache
from softcache.fields import Inputs
from softcache.stream.mean import MeanTargets
from softcache.stream.parts import Part, Parts
from softcache.stream.targets import CachedTargets, Targets


class BothTargets:
    """Gives a recorded part of a batch what the caches hold of its keys, and a fresh part the means of its rows."""

    def __init__(self, recorded: CachedTargets, means: MeanTargets):
        self.name = f"{recorded.name}; those of fresh views {means.name}"
        self.seconds = 0.0  # no teacher runs
        self._recorded, self._means = recorded, means

    @property
    def compared(self) -> Sequence[Cache]:
        """The cache of each of the digests of a recorded part. A fresh part has no digests."""
        return self._recorded.compared

    def begin(self, batches: Sequence[Parts]) -> None:
        """Prepares the recorded views of an epoch; means are the same in all epochs."""
        self._recorded.begin([[part for part in parts if not part.fresh] for parts in batches])

    def soon(self, views: Sequence[int]) -> None:
        """Fetches recorded views of the next epoch."""
        self._recorded.soon(views)

    def targets(self, part: Part, rows: torch.Tensor, inputs: Inputs) -> Targets:
        """``rows`` (n,) int64 on the device: those of the part's keys; ``inputs`` are not used."""
        return (self._means if part.fresh else self._recorded).targets(part, rows, inputs)
