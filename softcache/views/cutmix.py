"""CutMix: views with a box of another view."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from softcache.errors import UsageError
from softcache.views._image import Pixels
from softcache.views._keys import Int64, Keys, integers
from softcache.views._tables import LARGEST_ALPHA, ONE, beta_shares


@dataclass(frozen=True)
class Cutmix:
    """Pastes a box of the partner at the same place. The weight of the own label is the share of own pixels.

    The box has the share 1-λ of the area, with λ drawn from Beta(alpha, alpha). Its centre is drawn uniformly, and what
    lies outside of the image is cut off. The partner is drawn uniformly from the other rows.
    Source: Yun et al., "CutMix: regularization strategy to train strong classifiers with localizable features",
    2019, equation 2.

    >>> keys = Keys(seed=0, indices=np.arange(4), view=0, position=0)
    >>> own, partners = np.ones((4, 8, 8, 1), np.uint8), np.zeros((4, 8, 8, 1), np.uint8)
    >>> mixed = Cutmix().mix(own, partners, keys)
    >>> np.allclose(mixed.mean((1, 2, 3)), Cutmix().weights(keys, size=8))
    True
    """

    alpha: float = 1.0

    kind: ClassVar[str] = "mix"
    revision: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= LARGEST_ALPHA:
            raise UsageError(
                f"view recipe 'cutmix': alpha={self.alpha:g} is out of range: give one above 0, up to {LARGEST_ALPHA:g}"
            )

    def weights(self, keys: Keys, size: int) -> npt.NDArray[np.float32]:
        """(B,) float32: the share of own pixels."""
        top, left, bottom, right = self.boxes(keys, size)
        return (1 - (bottom - top) * (right - left) / (size * size)).astype(np.float32)

    def boxes(self, keys: Keys, size: int) -> tuple[Int64, Int64, Int64, Int64]:
        """The boxes with pixels of the partners, in images of size × size: top, left, bottom, right, (B,) each."""
        words = keys.words(4)  # the first is used to draw the partner
        area = (ONE - beta_shares(words[:, 1], self.alpha)) * (size * size) // ONE
        side = np.sqrt(area.astype(np.float64)).astype(
            np.int64
        )  # exact, because IEEE 754 rounds square roots correctly
        edges = []
        for word in (words[:, 2], words[:, 3]):
            low = integers(word, size) - side // 2
            edges.append((low.clip(0, size), (low + side).clip(0, size)))
        return edges[0][0], edges[1][0], edges[0][1], edges[1][1]

    def mix(self, images: Pixels, partners: Pixels, keys: Keys) -> Pixels:
        """images, partners: (B, S, S, C). Result: the same shape."""
        mixed = images.copy()
        boxes = np.stack(self.boxes(keys, images.shape[1]), axis=1).tolist()
        for place, (top, left, bottom, right) in enumerate(boxes):
            mixed[place, top:bottom, left:right] = partners[place, top:bottom, left:right]
        return mixed
