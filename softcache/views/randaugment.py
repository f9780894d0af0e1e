"""torchvision's RandAugment, seeded with the key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torchvision.transforms import RandAugment

from softcache.errors import UsageError
from softcache.views._image import Pixels
from softcache.views._keys import Keys
from softcache.views._wrapped import change_each, check_operations

BINS = 31


@dataclass(frozen=True)
class Randaugment:
    """``n`` of fourteen operations on Pillow images, with magnitude ``m`` (0..30).

    Source: Cubuk et al., "RandAugment: practical automated data augmentation with a reduced search space", 2019.

    >>> import numpy as np
    >>> keys = Keys(seed=0, indices=np.arange(2), view=0, position=0)
    >>> images = np.arange(2 * 8 * 8, dtype=np.uint8).reshape(2, 8, 8, 1)
    >>> one, again = (Randaugment().change(images, keys) for _ in range(2))
    >>> one.shape, bool((one == again).all())
    ((2, 8, 8, 1), True)
    """

    n: int = 2
    m: int = 9

    kind: ClassVar[str] = "pixels"
    revision: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UsageError(f"view recipe 'randaugment': n={self.n} is too small: give 1 operation or more")
        if not 0 <= self.m < BINS:
            raise UsageError(f"view recipe 'randaugment': m={self.m} is not a magnitude: give one in 0..{BINS - 1}")

    def check_pixels(self, dtype: str, channels: int) -> None:
        """Errors: ``UsageError`` for pictures that Pillow has no such operations for."""
        check_operations(dtype, channels, "view recipe 'randaugment'")

    def change(self, images: Pixels, keys: Keys) -> Pixels:
        """images: (B, S, S, C) uint8. Result: the same shape."""
        transform = RandAugment(self.n, self.m, num_magnitude_bins=BINS)
        return change_each(transform, images, keys, "view recipe 'randaugment'")
