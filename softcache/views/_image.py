"""Arrays, Pillow images, and the evaluation geometry. Resizing is Pillow's: integers, the same on every machine."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]


def to_pil(pixels: Pixels) -> Image.Image:
    """An (H, W, C) uint8 array, C 1 or 3, as a Pillow image of mode L or RGB."""
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def from_pil(image: Image.Image) -> Pixels:
    """The (H, W, C) uint8 array of a Pillow image of mode L or RGB."""
    pixels = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def resize_and_crop(pixels: Pixels, resize: int, size: int) -> Pixels:
    """Shorter side resized to ``resize`` (bilinear, antialiased), then the central ``size`` × ``size`` pixels.

    pixels: (H, W, C) uint8; result: (size, size, C), which is ``pixels`` itself where nothing is to be done.
    The same as torchvision's ``Resize(resize)`` and ``CenterCrop(size)`` on a Pillow image; size ≤ resize.
    """
    height, width = pixels.shape[:2]
    short = min(height, width)
    if short != resize:
        height, width = resize * height // short, resize * width // short
        pixels = from_pil(to_pil(pixels).resize((width, height), Image.Resampling.BILINEAR))
    # round() to even, as torchvision: for an odd margin the crop may lie on either side of the middle
    top, left = round((height - size) / 2), round((width - size) / 2)
    return pixels[top : top + size, left : left + size]


def resize_box(pixels: Pixels, box: tuple[int, int, int, int], size: int) -> Pixels:
    """The box (top, left, height, width) of an (H, W, C) image, resized to (size, size, C).

    It is cut out first, so that pixels outside of it have no say: torchvision's ``resized_crop``.
    """
    top, left, height, width = box
    cut = pixels[top : top + height, left : left + width]
    if (height, width) == (size, size):
        return cut
    # contiguous: Pillow would copy it anyway, in a slower way
    return from_pil(to_pil(np.ascontiguousarray(cut)).resize((size, size), Image.Resampling.BILINEAR))
