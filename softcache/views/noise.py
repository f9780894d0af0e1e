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
    """Adds a normal random number to every pixel and channel, rounds, and clips to 0..255.

    std: the standard deviation as a share of the range of pixels: 0.1 is 25.5 of 255.

    >>> keys = Keys(seed=0, indices=np.arange(4), view=0, position=0)
    >>> grey = np.full((4, 64, 64, 1), 128, np.uint8)
    >>> noisy = Noise(std=0.1).change(grey, keys)
    >>> round(float(noisy.mean()), -1), round(float(noisy.std()))
    (130.0, 25)
    """

    std: float = 0.1

    kind: ClassVar[str] = "pixels"
    revision: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not 0 <= self.std <= 1:
            raise UsageError(
                f"view recipe 'noise': std={self.std:g} is out of range: give a share of the range of pixels, in 0..1"
            )

    def change(self, images: Pixels, keys: Keys) -> Pixels:
        """images: (B, S, S, C) uint8. Result: the same shape."""
        table = normal_steps(self.std)
        count = images[0].size if len(images) else 0
        noisy = np.empty_like(images)
        # A few images at a time: their 64-bit words and steps stay in the cache of a core.
        rows = max(1, 16384 // max(1, count))
        for start in range(0, len(images), rows):
            part = slice(start, start + rows)
            words = keys.part(part).words(-(-count // 4)).astype("<u8", copy=False)
            draws = words.view("<u2")[:, :count]  # each word gives four numbers of 16 bits, lowest first
            summed = images[part].reshape(-1, count) + table[draws]
            noisy[part] = summed.clip(0, 255).astype(np.uint8).reshape(images[part].shape)
        return noisy
