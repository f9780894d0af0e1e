"""Arrays, Pillow images, and resizing. Pillow resizes pictures of 8 bits in integer arithmetic, equal on every machine,
and those of 16 bits in float64, rounding at the end: there a processor that computes in another order could, where a
value lies at a half, give the number beside it, which the digest of that key would show."""

from __future__ import annotations

import numpy as np
from PIL import Image

from softcache.datasets._pixels import Pixels as Pixels


def to_pil(pixels: Pixels) -> Image.Image:
    """An (H, W, C) array as a Pillow image: uint8 with C 1 or 3 of mode L or RGB, uint16 with C 1 of mode I;16."""
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def from_pil(image: Image.Image) -> Pixels:
    """The (H, W, C) array of a Pillow image of mode L, RGB or I;16."""
    pixels = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def fits_pillow(pixels: Pixels) -> bool:
    """Whether ``to_pil`` can make an image of it."""
    return pixels.shape[2] == 1 or (pixels.shape[2] == 3 and pixels.dtype == np.uint8)


def resize_and_crop(pixels: Pixels, resize: int, size: int) -> Pixels:
    """Resizes the shorter side to ``resize`` (bilinear, antialiased) and crops the central ``size`` × ``size`` pixels.

    pixels: (H, W, C) uint8 or uint16; size ≤ resize. Result: (size, size, C), a view of ``pixels`` where nothing is
    resized. It equals that of torchvision's ``Resize(resize)`` and ``CenterCrop(size)`` on a Pillow image.

    >>> resize_and_crop(np.zeros((30, 40, 3), np.uint8), resize=16, size=8).shape
    (8, 8, 3)
    """
    height, width = pixels.shape[:2]
    short = min(height, width)
    if short != resize:
        height, width = resize * height // short, resize * width // short
        pixels = _resized(pixels, height, width)
    # round() rounds to even, as torchvision does: an odd margin may be larger on either side
    top, left = round((height - size) / 2), round((width - size) / 2)
    return pixels[top : top + size, left : left + size]


def resize_box(pixels: Pixels, box: tuple[int, int, int, int], size: int) -> Pixels:
    """The box (top, left, height, width) of an (H, W, C) image, resized to (size, size, C).

    The box is cropped first, so pixels outside of it have no influence, as in torchvision's ``resized_crop``.
    """
    top, left, height, width = box
    cut = pixels[top : top + height, left : left + width]
    if (height, width) == (size, size):
        return cut
    # Pillow copies an array that isn't contiguous, which is slower
    return _resized(np.ascontiguousarray(cut), size, size)


def _resized(pixels: Pixels, height: int, width: int) -> Pixels:
    if not fits_pillow(pixels):  # Pillow knows no such pictures; it resizes each channel by itself anyway
        channels = [np.ascontiguousarray(pixels[:, :, n : n + 1]) for n in range(pixels.shape[2])]
        return np.concatenate([_resized(channel, height, width) for channel in channels], axis=2)
    return from_pil(to_pil(pixels).resize((width, height), Image.Resampling.BILINEAR))
