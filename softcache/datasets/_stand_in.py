"""Rows that stand in for data that aren't at hand: they have a number, a size and classes, and nothing to see."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from softcache.datasets._labels import numbered
from softcache.datasets._pixels import Pixels
from softcache.datasets._samples import Samples

CHANNELS = 3


@dataclass(frozen=True)
class _Grey:
    """Decodes every row to the same picture."""

    side: int

    def __call__(self, index: int) -> Pixels:
        return np.full((self.side, self.side, CHANNELS), 128, np.uint8)


def stand_in(rows: int, classes: int, side: int) -> Samples:
    """``rows`` grey pictures of ``side`` pixels in three channels, of ``classes`` classes, or of none where that is 0,
    as data in files would be augmented by default. They take no memory, however many they are."""
    return Samples(
        spec=f"{rows} rows",
        split="train",
        classes=numbered(classes),
        labels=np.broadcast_to(np.int32(0), (rows,)),
        channels=CHANNELS,
        size=side,
        resize=side,
        recipe="rrc+flip",
        statistics=((0.5,) * CHANNELS, (0.25,) * CHANNELS),
        decode=_Grey(side),
    )
