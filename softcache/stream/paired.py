"""A weak and a strong view of each row side by side, from two caches of one dataset (``--strong-cache``)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from softcache.cache.reader import Cache
from softcache.fields import Inputs, joined_inputs
from softcache.stream.inputs import InputSource, Keys
from softcache.stream.parts import Part, Parts
from softcache.stream.targets import CachedTargets, Targets


class PairedInputs:
    """Makes the weak and the strong parts of each batch from sources of their own, each with its recipe."""

    def __init__(self, weak: InputSource, strong: InputSource):
        self.name = f"{weak.name}; strong views {strong.name}"
        self._weak, self._strong = weak, strong

    def epoch(self, batches: Sequence[Parts]) -> Keys:
        """As ``InputSource.epoch``; weak parts come before strong ones."""
        weak = self._weak.epoch(_only(batches, strong=False))
        strong = self._strong.epoch(_only(batches, strong=True))
        for parts, (_, weak_rows, weak_inputs), (_, strong_rows, strong_inputs) in zip(
            batches, weak, strong, strict=True
        ):
            yield parts, torch.cat([weak_rows, strong_rows]), joined_inputs([weak_inputs, strong_inputs])


class PairedTargets:
    """Gives each part of a batch what the cache of its recipe holds of its keys."""

    def __init__(self, weak: CachedTargets, strong: CachedTargets):
        self.name = weak.name
        self.seconds = 0.0  # no teacher runs
        self._weak, self._strong = weak, strong

    @property
    def compared(self) -> Sequence[Cache]:
        """The cache of each of the digests of a weak part."""
        return self._weak.compared

    def begin(self, batches: Sequence[Parts]) -> None:
        """Prepares the views of an epoch in both caches."""
        self._weak.begin(_only(batches, strong=False))
        self._strong.begin(_only(batches, strong=True))

    def soon(self, views: Sequence[int]) -> None:
        """Fetches the views of the next epoch in both caches."""
        self._weak.soon(views)
        self._strong.soon(views)

    def targets(self, part: Part, rows: torch.Tensor, inputs: Inputs) -> Targets:
        """``rows`` (n,) int64 on the device: those of the part's keys; ``inputs`` are not used."""
        return (self._strong if part.strong else self._weak).targets(part, rows, inputs)


def _only(batches: Sequence[Parts], *, strong: bool) -> list[Parts]:
    return [[part for part in parts if part.strong is strong] for parts in batches]
