"""Random resized crops."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from softcache.datasets._hash import UInt64
from softcache.errors import UsageError
from softcache.views._image import Pixels, resize_box
from softcache.views._tables import RATIO_BITS, log_uniform

TRIES = 10


@dataclass(frozen=True)
class Rrc:
    """Crops a box with a random share of the image's area and a random aspect ratio, and resizes it to the view's size.

    scale: the range of the share, drawn uniformly. ratio: the range of width/height, drawn log-uniformly. As in
    torchvision's ``RandomResizedCrop``, ten boxes are tried. Where none fits, the largest central box within the ratios
    is taken. Source: Szegedy et al., "Going deeper with convolutions", 2014, section 6.

    >>> import numpy as np
    >>> words = np.arange(Rrc.words, dtype=np.uint64)
    >>> Rrc(scale=(1.0, 1.0), ratio=(1.0, 1.0)).box(32, 32, words)  # the whole image: top, left, height, width
    (0, 0, 32, 32)
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (0.75, 1.3333)

    kind: ClassVar[str] = "image"
    revision: ClassVar[int] = 1
    words: ClassVar[int] = 2 * TRIES

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UsageError(
                f"view recipe 'rrc': scale={_range(self.scale)} is not a range of shares: give one such as 0.08-1"
            )
        if not 0 < self.ratio[0] <= self.ratio[1] <= 1000:
            raise UsageError(
                f"view recipe 'rrc': ratio={_range(self.ratio)} is not a range of ratios: give one such as 0.75-1.3333"
            )

    def view(self, image: Pixels, words: UInt64, size: int) -> Pixels:
        """image: (H, W, C); words: (20,) uint64. Result: (size, size, C)."""
        return resize_box(image, self.box(image.shape[0], image.shape[1], words), size)

    def box(self, height: int, width: int, words: UInt64) -> tuple[int, int, int, int]:
        """The box (top, left, height, width) that is drawn from these words in an image of this size."""
        low, high = (round(share * 2**32) for share in self.scale)
        ratios = log_uniform(*self.ratio)
        halves = [half for word in words.tolist() for half in (word >> 32, word & 0xFFFFFFFF)]
        for at in range(0, 4 * TRIES, 4):
            area, aspect, down, right = halves[at : at + 4]
            area = height * width * (low + (area * (high - low + 1) >> 32))  # in 1/2**32
            aspect = ratios[aspect >> (32 - RATIO_BITS)]  # in 1/2**32
            # (⌊√(4x)⌋ + 1) // 2 is √x, rounded
            box_width = (math.isqrt(4 * area * aspect >> 64) + 1) // 2
            box_height = (math.isqrt(4 * area // aspect) + 1) // 2
            if 0 < box_width <= width and 0 < box_height <= height:
                top = down * (height - box_height + 1) >> 32
                left = right * (width - box_width + 1) >> 32
                return top, left, box_height, box_width
        return self._central(height, width, ratios)

    def _central(self, height: int, width: int, ratios: tuple[int, ...]) -> tuple[int, int, int, int]:
        low, high = (round(ratio * 2**32) for ratio in self.ratio)
        box_height, box_width = height, width
        if width << 32 < height * low:
            box_height = max(1, min(height, ((width << 33) // low + 1) // 2))
        elif width << 32 > height * high:
            box_width = max(1, min(width, ((height * high >> 31) + 1) // 2))
        return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def _range(pair: tuple[float, float]) -> str:
    return f"{pair[0]:g}-{pair[1]:g}"
