"""torchvision's TrivialAugment, seeded with the key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torchvision.transforms import TrivialAugmentWide

from softcache.views._image import Pixels
from softcache.views._keys import Keys
from softcache.views._wrapped import change_each


@dataclass(frozen=True)
class Trivialaugment:
    """One operation of random magnitude out of fourteen with wide ranges, on Pillow images.

    Source: Müller, Hutter, "TrivialAugment: tuning-free yet state-of-the-art data augmentation", 2021.
    """

    kind: ClassVar[str] = "pixels"
    revision: ClassVar[int] = 1

    def change(self, images: Pixels, keys: Keys) -> Pixels:
        """images: (B, S, S, C) uint8. Result: the same shape."""
        return change_each(TrivialAugmentWide(), images, keys, "view recipe 'trivialaugment'")
