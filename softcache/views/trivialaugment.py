"""torchvision's TrivialAugment, seeded with the key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torchvision.transforms import TrivialAugmentWide

from softcache.views._image import Pixels
from softcache.views._keys import Keys
from softcache.views._wrapped import change_each, check_operations


@dataclass(frozen=True)
class Trivialaugment:
    """One of fourteen operations on Pillow images, with a random magnitude from a wide range.

    Source: Müller, Hutter, "TrivialAugment: tuning-free yet state-of-the-art data augmentation", 2021.

    >>> import numpy as np
    >>> keys = Keys(seed=0, indices=np.arange(2), view=0, position=0)
    >>> images = np.arange(2 * 8 * 8, dtype=np.uint8).reshape(2, 8, 8, 1)
    >>> one, again = (Trivialaugment().change(images, keys) for _ in range(2))
    >>> one.shape, bool((one == again).all())
    ((2, 8, 8, 1), True)
    """

    kind: ClassVar[str] = "pixels"
    revision: ClassVar[int] = 1

    def check_pixels(self, dtype: str, channels: int) -> None:
        """Errors: ``UsageError`` for pictures that Pillow has no such operations for."""
        check_operations(dtype, channels, "view recipe 'trivialaugment'")

    def change(self, images: Pixels, keys: Keys) -> Pixels:
        """images: (B, S, S, C) uint8. Result: the same shape."""
        return change_each(TrivialAugmentWide(), images, keys, "view recipe 'trivialaugment'")
