"""Mixup: views that are weighted means of two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from softcache.errors import UsageError
from softcache.fields import Fields
from softcache.inputs import InputField
from softcache.views._augmentation import floating_fields
from softcache.views._image import Pixels
from softcache.views._keys import Int64, Keys
from softcache.views._tables import LARGEST_ALPHA, ONE, beta_shares


@dataclass(frozen=True)
class Mixup:
    """λ·own + (1-λ)·partner, of pixels rounded; λ is drawn from Beta(alpha, alpha), the partner uniformly from the
    other rows.

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
        """images, partners: (B, S, S, C) uint8 or uint16. Result: the same shape and dtype."""
        wide = np.int32 if images.dtype == np.uint8 else np.int64  # holds every pixel times ONE
        share = self._shares(keys).astype(wide)[:, None, None, None]
        return ((images * share + partners * (ONE - share) + ONE // 2) >> 16).astype(images.dtype)

    def check_fields(self, inputs: Mapping[str, InputField]) -> None:
        """Errors: ``UsageError`` where an input is no array of floating numbers of a fixed shape: nothing lies between
        two words, or between two rows of different lengths."""
        floating = floating_fields(inputs, "mixup")
        for name, field in inputs.items():
            if name not in floating:
                raise UsageError(f"view recipe 'mixup': {name} is {field}, and only floating numbers can be mixed")

    def mix_fields(self, own: Fields, partners: Fields, keys: Keys) -> Fields:
        """All inputs mixed with the same λ. float16 is rounded from float32."""
        shares = self._shares(keys)
        mixed = {}
        for name, tensor in own.tensors.items():
            wide = np.float64 if tensor.dtype == torch.float64 else np.float32
            weight = (shares.astype(wide) / wide(ONE)).reshape(-1, *[1] * (tensor.ndim - 1))
            # every step is one operation of IEEE arithmetic, so that the bits are the same on all machines
            first, second = (fields.tensors[name].numpy().astype(wide) for fields in (own, partners))
            mixed[name] = torch.from_numpy(first * weight + second * (1 - weight)).to(tensor.dtype)
        return Fields(mixed)

    def _shares(self, keys: Keys) -> Int64:
        # the first word is used to draw the partner
        return beta_shares(keys.words(2)[:, 1], self.alpha)
