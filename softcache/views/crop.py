"""Random shifts: a crop of the view's size from the image, padded on all sides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from softcache.errors import UsageError
from softcache.inputs import WHITE
from softcache.views._keys import Keys, integers
from softcache.views._move import Motion


@dataclass(frozen=True)
class Crop:
    """Pads by ``pad`` pixels of value ``fill`` and crops the view's size at a uniformly drawn offset.

    ``fill``: 0..255, of pictures of 16 bits 0..65535.

    At the same offset the result is that of torchvision's ``RandomCrop(size, padding=pad, fill=fill)``.

    >>> keys = Keys(seed=0, indices=np.arange(1000), view=0, position=0)
    >>> motion = Crop(pad=1).motion(keys, size=8)
    >>> sorted(set(motion.top.tolist()))
    [-1, 0, 1]
    """

    pad: int = 4
    fill: int = 0

    kind: ClassVar[str] = "move"
    revision: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.pad < 0:
            raise UsageError(f"view recipe 'crop': pad={self.pad} is negative: give a number of pixels from 0")
        self.check_pixels("uint16", 1)  # the widest pixels; narrower ones are checked when the data are known

    def check_pixels(self, dtype: str, channels: int) -> None:
        """Errors: ``UsageError`` where ``fill`` is no value of such pixels."""
        if not 0 <= self.fill <= WHITE[dtype]:
            raise UsageError(
                f"view recipe 'crop': fill={self.fill} is not a pixel value: give one in 0..{WHITE[dtype]}"
            )

    def motion(self, keys: Keys, size: int) -> Motion:
        """Offsets, uniform over the (2·pad + 1)² positions."""
        offsets = integers(keys.words(2), 2 * self.pad + 1) - self.pad
        return Motion(offsets[:, 0], offsets[:, 1], np.zeros(len(offsets), np.bool_), self.pad, self.fill)
