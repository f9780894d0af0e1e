"""Gaussian noise on pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from softcache.errors import UsageError
from softcache.views._image import Pixels
from softcache.views._keys import Keys
from softcache.views._tables import normal_steps


@dataclass(frozen=True)
class Noise:
    """Adds a normal number to every pixel and channel, rounded and clipped to 0..255.

    std: its deviation as a share of the range of pixels, 0.1 being 25.5 of 255.
    """

    std: float = 0.1

    kind: ClassVar[str] = "pixels"
    revision: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not 0 <= self.std <= 1:
            raise UsageError(f"view recipe 'noise': std={self.std:g} is out of range: give a share of it, in 0..1")

    def change(self, images: Pixels, keys: Keys) -> Pixels:
        """images: (B, S, S, C) uint8. Result: the same shape."""
        table = normal_steps(self.std)
        count = images[0].size if len(images) else 0
        noisy = np.empty_like(images)
        # a few images at a time: their 64-bit words and steps stay in a core's cache
        rows = max(1, 16384 // max(1, count))
        for start in range(0, len(images), rows):
            part = slice(start, start + rows)
            words = keys.part(part).words(-(-count // 4)).astype("<u8", copy=False)
            draws = words.view("<u2")[:, :count]  # four numbers of 16 bits from each word, the lowest first
            summed = images[part].reshape(-1, count) + table[draws]
            noisy[part] = summed.clip(0, 255).astype(np.uint8).reshape(images[part].shape)
        return noisy
