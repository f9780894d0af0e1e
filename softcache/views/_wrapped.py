"""Random transforms of other libraries as functions of the key: their generators are seeded and restored."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image

from softcache.console import counted
from softcache.datasets._hash import UInt64
from softcache.errors import DatasetError, UsageError
from softcache.views._image import Pixels, from_pil, to_pil
from softcache.views._keys import Keys

WORDS = 4  # drawn from the key for each sample


@contextmanager
def generators_kept() -> Iterator[None]:
    """Restores the states of torch's default CPU generator, of ``random`` and of ``numpy.random`` after the block."""
    states = torch.default_generator.get_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.default_generator.set_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])


def seed_generators(words: UInt64) -> None:
    """Seeds all three generators from the words of a key. CUDA's are left alone, because transforms run on the host."""
    # torch.manual_seed would also seed every accelerator, which takes a hundred times as long
    torch.default_generator.manual_seed(int(words[0]) >> 1)
    random.seed(int(words[1]))
    np.random.seed(int(words[2]) >> 32)


def check_operations(dtype: str, channels: int, owner: str) -> None:
    """Errors: ``UsageError`` for pictures that Pillow's operations on contrast and colour can't take."""
    if dtype != "uint8" or channels not in (1, 3):
        raise UsageError(
            f"{owner} is for pictures of 8 bits with 1 or 3 channels, these are {dtype} with "
            f"{counted(channels, 'channel')}: crop, flip, rrc, noise, mixup and cutmix take any"
        )


def change_each(transform: Callable[[Image.Image], Any], images: Pixels, keys: Keys, owner: str) -> Pixels:
    """Applies a transform of Pillow images to (B, S, S, C) views, seeded with each key. Result: the same shape."""
    changed = np.empty_like(images)
    words = keys.words(WORDS)
    with generators_kept():
        for place, image in enumerate(images):
            seed_generators(words[place])
            result = as_pixels(transform(to_pil(image)), image, owner)
            if result.shape != image.shape:
                raise DatasetError(f"{owner} gave pixels of shape {result.shape} for {image.shape}")
            changed[place] = result
    return changed


def as_pixels(result: Any, given: Pixels, owner: str) -> Pixels:
    """(H, W, C) of what a transform of ``given`` returned: a Pillow image, (C, H, W) tensor or (H, W[, C]) array.

    Errors: ``DatasetError`` for other types, and for another dtype or number of channels than those of ``given``.
    """
    if isinstance(result, Image.Image):
        pixels = from_pil(result)
    elif isinstance(result, torch.Tensor):
        pixels = result.detach().cpu().numpy()
        pixels = pixels.transpose(1, 2, 0) if pixels.ndim == 3 else pixels
    else:
        pixels = np.asarray(result)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.dtype != given.dtype or pixels.ndim != 3 or pixels.shape[2] != given.shape[2]:
        raise DatasetError(
            f"{owner} gave {type(result).__name__} of {pixels.dtype} {pixels.shape}: a view is {given.dtype} with "
            f"{counted(given.shape[2], 'channel')} here (conversion to float and normalization belong to the model)"
        )
    return pixels
