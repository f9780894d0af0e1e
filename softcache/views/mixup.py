"""Mixup: views that are weighted means of two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from softcache.errors import UsageError
from softcache.views._image import Pixels
from softcache.views._keys import Int64, Keys
from softcache.views._tables import LARGEST_ALPHA, ONE, beta_shares


@dataclass(frozen=True)
class Mixup:
    """λ·own + (1-λ)·partner, rounded; λ is drawn from Beta(alpha, alpha), the partner uniformly from the other rows.

    Source: Zhang et al., "mixup: beyond empirical risk minimization", 2017, equation 1.

    >>> keys = Keys(seed=0, indices=np.arange(4), view=0, position=0)
    >>> own, partners = np.zeros((4, 2, 2, 1), np.uint8), np.full((4, 2, 2, 1), 200, np.uint8)
    >>> mixed = Mixup(alpha=1.0).mix(own, partners, keys)
    >>> wanted = 200 * (1 - Mixup(alpha=1.0).weights(keys, size=2))
    >>> bool(np.abs(mixed[:, 0, 0, 0] - wanted).max() <= 0.5)
    True
    """

    alpha: float = 0.2

    kind: ClassVar[str] = "mix"
    revision: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= LARGEST_ALPHA:
            raise UsageError(
                f"view recipe 'mixup': alpha={self.alpha:g} is out of range: give one above 0, up to {LARGEST_ALPHA:g}"
            )

    def weights(self, keys: Keys, size: int) -> npt.NDArray[np.float32]:
        """(B,) float32: λ, a multiple of 1/65536."""
        return (self._shares(keys) / ONE).astype(np.float32)

    def mix(self, images: Pixels, partners: Pixels, keys: Keys) -> Pixels:
        """images, partners: (B, S, S, C) uint8. Result: the same shape."""
        share = self._shares(keys).astype(np.int32)[:, None, None, None]
        return ((images * share + partners * (ONE - share) + ONE // 2) >> 16).astype(np.uint8)

    def _shares(self, keys: Keys) -> Int64:
        # the first word is used to draw the partner
        return beta_shares(keys.words(2)[:, 1], self.alpha)
