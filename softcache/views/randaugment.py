"""torchvision's RandAugment, seeded with the key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torchvision.transforms import RandAugment

from softcache.errors import UsageError
from softcache.views._image import Pixels
from softcache.views._keys import Keys
from softcache.views._wrapped import change_each

BINS = 31


@dataclass(frozen=True)
class Randaugment:
    """``n`` operations of magnitude ``m`` (0..30) drawn from fourteen, on Pillow images.

    Source: Cubuk et al., "RandAugment: practical automated data augmentation with a reduced search space", 2019.
    """

    n: int = 2
    m: int = 9

    kind: ClassVar[str] = "pixels"
    revision: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UsageError(f"view recipe 'randaugment': n={self.n} operations: give 1 or more")
        if not 0 <= self.m < BINS:
            raise UsageError(f"view recipe 'randaugment': m={self.m} is no magnitude: give one in 0..{BINS - 1}")

    def change(self, images: Pixels, keys: Keys) -> Pixels:
        """images: (B, S, S, C) uint8. Result: the same shape."""
        transform = RandAugment(self.n, self.m, num_magnitude_bins=BINS)
        return change_each(transform, images, keys, "view recipe 'randaugment'")
