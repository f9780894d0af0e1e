"""Gaussian noise on pixels and on other floating numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from softcache.errors import UsageError
from softcache.fields import Fields
from softcache.inputs import WHITE, InputField
from softcache.views._augmentation import floating_fields
from softcache.views._image import Pixels
from softcache.views._keys import Keys
from softcache.views._tables import ONE, normal, normal_steps


@dataclass(frozen=True)
class Noise:
    """Adds a normal random number to every pixel and channel, rounds, and clips to black and white; or to every number
    of the inputs that are floating and of a fixed shape.

    std: the standard deviation, of pixels as a share of their range: 0.1 is 25.5 of 255; of other inputs in their own
    units, before a network standardizes them.

    >>> keys = Keys(seed=0, indices=np.arange(4), view=0, position=0)
    >>> grey = np.full((4, 64, 64, 1), 128, np.uint8)
    >>> noisy = Noise(std=0.1).change(grey, keys)
    >>> round(float(noisy.mean()), -1), round(float(noisy.std()))
    (130.0, 25)
    """

    std: float = 0.1

    kind: ClassVar[str] = "pixels"
    revision: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not 0 <= self.std <= 1:
            raise UsageError(
                f"view recipe 'noise': std={self.std:g} is out of range: give a share of the range of pixels, in 0..1"
            )

    def change(self, images: Pixels, keys: Keys) -> Pixels:
        """images: (B, S, S, C) uint8 or uint16. Result: the same shape and dtype."""
        white = WHITE[images.dtype.name]
        table = normal_steps(self.std, white)
        count = images[0].size if len(images) else 0
        noisy = np.empty_like(images)
        # A few images at a time: their 64-bit words and steps stay in the cache of a core.
        rows = max(1, 16384 // max(1, count))
        for start in range(0, len(images), rows):
            part = slice(start, start + rows)
            words = keys.part(part).words(-(-count // 4)).astype("<u8", copy=False)
            draws = words.view("<u2")[:, :count]  # each word gives four numbers of 16 bits, lowest first
            summed = images[part].reshape(-1, count) + table[draws]
            noisy[part] = summed.clip(0, white).astype(images.dtype).reshape(images[part].shape)
        return noisy

    def check_fields(self, inputs: Mapping[str, InputField]) -> None:
        """Errors: ``UsageError`` where no input is of floating numbers of a fixed shape."""
        floating_fields(inputs, "noise")

    def change_fields(self, fields: Fields, keys: Keys) -> Fields:
        """Changes floating inputs of a fixed shape, in the order of their names. float16 is rounded from float32."""
        floating = {
            name: tensor
            for name, tensor in sorted(fields.tensors.items())
            if tensor.is_floating_point() and name not in fields.lengths
        }
        counts = [tensor[0].numel() if len(tensor) else 0 for tensor in floating.values()]
        words = keys.words(-(-sum(counts) // 4)).astype("<u8", copy=False)
        steps = normal()[words.view("<u2")]  # (B, at least as many as there are numbers), in 1/65536
        changed, at = dict(fields.tensors), 0
        for (name, tensor), count in zip(floating.items(), counts, strict=True):
            wide = np.float64 if tensor.dtype == torch.float64 else np.float32
            # every step is one operation of IEEE arithmetic, so that the bits are the same on all machines
            noise = steps[:, at : at + count].astype(wide) * wide(self.std / ONE)
            noisy = tensor.numpy().astype(wide) + noise.reshape(tuple(tensor.shape))
            changed[name] = torch.from_numpy(noisy).to(tensor.dtype)
            at += count
        return Fields(changed, fields.lengths, fields.masks, fields.pads)
