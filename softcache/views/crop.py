"""Random shifts: a crop of the view's size out of the image padded on all sides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from softcache.errors import UsageError
from softcache.views._keys import Keys, integers
from softcache.views._move import Motion


@dataclass(frozen=True)
class Crop:
    """Pads by ``pad`` pixels of value ``fill`` (0..255) and cuts the view's size out at a uniform offset.

    The same as torchvision's ``RandomCrop(size, padding=pad, fill=fill)`` at the same offset.
    """

    pad: int = 4
    fill: int = 0

    kind: ClassVar[str] = "move"
    revision: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.pad < 0:
            raise UsageError(f"view recipe 'crop': pad={self.pad} is negative: give 0 or more pixels")
        if not 0 <= self.fill <= 255:
            raise UsageError(f"view recipe 'crop': fill={self.fill} is no pixel value: give one in 0..255")

    def motion(self, keys: Keys, size: int) -> Motion:
        """Offsets, uniform over the (2·pad + 1)² positions."""
        offsets = integers(keys.words(2), 2 * self.pad + 1) - self.pad
        return Motion(offsets[:, 0], offsets[:, 1], np.zeros(len(offsets), np.bool_), self.pad, self.fill)
