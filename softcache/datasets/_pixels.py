"""Pixels of one image or of an array of them: decoded, checked, measured."""

from __future__ import annotations

import os
import re
import stat
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from softcache.errors import DatasetError
from softcache.inputs import MAX_CHANNELS, WHITE

Pixels = npt.NDArray[np.unsignedinteger]  # uint8 or uint16
Statistics = tuple[tuple[float, ...], tuple[float, ...]]

IMAGENET_STATISTICS: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
GREY_STATISTICS: Statistics = ((0.449,), (0.226,))  # their means
BITS_PER_SAMPLE, PHOTOMETRIC, BLACK_IS_ZERO = 258, 262, 1  # tags of TIFF, and a value of the second
CHUNK_BYTES = 1 << 24
COUNTED = 64  # channels whose values are counted at once: 32 MiB of 16 bits
MEASURED_BYTES = 1 << 28  # a larger train split is measured on evenly spaced rows of about this many bytes


def read_image(path: Path, channels: int, dtype: str = "uint8") -> Pixels:
    """Decodes a file with Pillow to (H, W, channels) of uint8, or of uint16 with one channel.

    As in torchvision EXIF orientation is not applied, transparency is dropped, and an animation is its first frame.

    Errors: ``DatasetError`` that names the file, also where it has more than ``Image.MAX_IMAGE_PIXELS`` pixels or
    values whose range is not known.
    """
    try:
        with open_regular(path) as file, _opened(file, path) as image:
            pixels = _sixteen_bits(image, str(path)) if dtype == "uint16" else _eight_bits(image, channels, str(path))
    # Pillow's decoders raise SyntaxError for broken headers, ValueError and EOFError for some broken bodies
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DatasetError(f"{path} can't be decoded: {reason}; replace or remove the file") from None
    return pixels.reshape(*pixels.shape[:2], channels)


def open_regular(path: Path) -> BinaryIO:
    """A regular file, opened for reading; a pipe is refused without waiting for its writer.

    Errors: ``OSError``, also for what is not a regular file.
    """
    file = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError("it is not a regular file")
    return file


def as_pixels(image: Any, channels: int, where: str, dtype: str = "uint8") -> Pixels:
    """A Pillow image, which becomes uint8, or an array of ``dtype``, (H, W) or (H, W, C), as (H, W, channels).

    Errors: ``DatasetError`` for anything else.
    """
    pixels = _eight_bits(image, channels, where) if isinstance(image, Image.Image) else np.array(image)
    if pixels.dtype.name == dtype:
        pixels = pixels.astype(dtype, copy=False)  # the bytes may be in another order
    if pixels.dtype != dtype or pixels.ndim not in (2, 3):
        raise DatasetError(
            f"{where}: an image must be a Pillow image or {dtype} of shape (H, W) or (H, W, C), "
            f"found {type(image).__name__} of {pixels.dtype} {pixels.shape}"
        )
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    if pixels.shape[2] != channels:
        raise DatasetError(f"{where}: expected {channels} channels, found {pixels.shape[2]}")
    return pixels


def _opened(file: BinaryIO, path: Path) -> Image.Image:
    """An image whose header has been read. What Pillow warns of (and loads) is refused here before it is decoded."""
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            image = Image.open(file)
        except Image.DecompressionBombError as error:  # twice the limit; it says "Image size (N pixels) exceeds …"
            raise _too_large(path, int("".join(re.findall(r"\((\d+) pixels\)", str(error))) or 0)) from None
    if limit is not None and image.width * image.height > limit:
        raise _too_large(path, image.width * image.height)
    return image


def _too_large(path: Path, pixels: int) -> DatasetError:
    return DatasetError(
        f"{path} has {pixels:,} pixels, more than the {Image.MAX_IMAGE_PIXELS:,} that are decoded unless you say so: "
        f"remove the file, or allow it with --max-image-pixels {pixels}"
    )


def _eight_bits(image: Image.Image, channels: int, where: str) -> npt.NDArray[np.uint8]:
    """(H, W, 3), or (H, W). Pillow's own conversion cuts wider values off at 255, so they are scaled here.

    16 bits become 8 by division by 257 and rounding, the exact inverse of how 8 bits are widened to 16 (65535 is
    white in both). Colour of 16 bits a channel is decoded by Pillow to the upper 8 of them.
    """
    wide = _wide_values(image, where)
    if wide is not None:
        image = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns where such a palette is made RGB at once
    return np.array(image.convert("RGB" if channels == 3 else "L"))


def _sixteen_bits(image: Image.Image, where: str) -> npt.NDArray[np.uint16]:
    """(H, W). Grey of 8 bits is widened, so that 65535 is white.

    Errors: ``DatasetError`` for colour, of which Pillow decodes 8 bits a channel.
    """
    wide = _wide_values(image, where)
    if wide is not None:
        return wide.astype(np.uint16)
    if image.mode not in ("1", "L", "LA"):
        raise DatasetError(f"{where} is in colour ({image.mode}), of which 8 bits are read: leave out bits=16")
    return np.array(image.convert("L")).astype(np.uint16) * np.uint16(257)


def _wide_values(image: Image.Image, where: str) -> npt.NDArray[np.uint32] | None:
    """The values, 0..65535, of a grey image of 16 bits, (H, W); None for one of 8 bits a channel.

    Errors: ``DatasetError`` for values whose black and white are not known.
    """
    if image.mode == "F":
        raise DatasetError(f"{where} has floating-point numbers of {_unknown_range(image)}")
    if not image.mode.startswith("I"):
        return None
    if not _has_16_bits(image):
        raise DatasetError(f"{where} has whole numbers of {_unknown_range(image)}")
    return np.asarray(image).astype(np.uint32)


def _has_16_bits(image: Image.Image) -> bool:
    """Whether the values of a grey image wider than 8 bits go from 0, black, to 65535, white."""
    tags = getattr(image, "tag_v2", None)
    if tags is not None:  # of TIFF, which may also have 12 bits, signed numbers, and white at 0
        return image.mode != "I" and tags.get(BITS_PER_SAMPLE) == (16,) and tags.get(PHOTOMETRIC) == BLACK_IS_ZERO
    # Mode I has 32 bits. Pillow uses it for PNG and PGM of 16 bits, and scales PGM of other ranges to them.
    return image.mode != "I" or image.format in ("PNG", "PPM")


def _unknown_range(image: Image.Image) -> str:
    return f"mode {image.mode} ({image.format or 'no file'}), whose black and white are not known: convert it to 8 bits"


@dataclass(frozen=True)
class ItemDecoder:
    """Decodes rows of a map-style dataset whose items are (Pillow image or array of pixels, label)."""

    dataset: Any
    channels: int
    spec: str
    dtype: str = "uint8"

    def __call__(self, index: int) -> Pixels:
        where = f"{self.spec}, row {index}"
        try:
            image = self.dataset[index][0]
        except Exception as error:  # foreign code may raise anything; the cause stays attached
            raise DatasetError(f"{where} can't be read: {type(error).__name__}: {error}") from error
        return as_pixels(image, self.channels, where, self.dtype)


def checked_images(images: npt.NDArray, where: str) -> Pixels:
    """Arrays (N, H, W) or (N, H, W, C) as (N, H, W, C), not copied.

    Errors: ``DatasetError`` for another dtype or shape.
    """
    fits = images.ndim == 3 or (images.ndim == 4 and images.shape[3] <= MAX_CHANNELS)
    if images.dtype.kind == "f":
        raise DatasetError(
            f"{where} must be uint8 or uint16 to be pictures, found {images.dtype}: as an input of another name "
            "(train_spectrogram.npy, or {'spectrogram': …} from a function) floating numbers are read as they are"
        )
    if images.dtype.name in WHITE and not images.dtype.isnative:
        raise DatasetError(f"{where} is {images.dtype.str}, the bytes in another order: save it as {images.dtype.name}")
    if images.dtype.name not in WHITE or not fits:
        raise DatasetError(
            f"{where} must be uint8 or uint16 of shape (N, H, W) or (N, H, W, C) with up to {MAX_CHANNELS} channels, "
            f"found {images.dtype} {images.shape}"
        )
    if images.ndim == 4 and images.shape[1] <= 4 < images.shape[3]:
        raise DatasetError(f"{where} is {images.shape}: the channels come last, (N, H, W, C)")
    if 0 in images.shape[1:]:
        raise DatasetError(f"{where} has images without pixels, shape {images.shape}")
    return images[..., None] if images.ndim == 3 else images


def map_images(path: Path) -> Pixels:
    """The images of a .npy file, memory-mapped, as (N, H, W, C); the file can't be changed through them."""
    # copy-on-write rather than read-only, because torch warns of arrays that aren't writable
    images = np.lib.format.open_memmap(path, mode="c")
    return images[..., None] if images.ndim == 3 else images


def row_chunks(images: Pixels) -> Iterator[Pixels]:
    """Consecutive rows of (N, …), at most about 16 MiB at a time."""
    rows = max(1, CHUNK_BYTES // max(1, images[:1].nbytes))
    for first in range(0, len(images), rows):
        yield images[first : first + rows]


def measure(images: Pixels) -> Statistics:
    """Per-channel mean and deviation of (N, H, W, C) as fractions of white, 255 or 65535.

    From exact counts of the values, so neither chunks nor their order show in the result. Splits above
    256 MiB are measured on evenly spaced rows. A channel that is constant gets a deviation of 1.
    """
    channels = images.shape[3]
    if channels > COUNTED:
        parts = [measure(images[..., first : first + COUNTED]) for first in range(0, channels, COUNTED)]
        return sum((mean for mean, _ in parts), ()), sum((deviation for _, deviation in parts), ())
    step = max(1, -(-images.nbytes // MEASURED_BYTES))
    white = WHITE[images.dtype.name]
    counts = np.zeros((channels, white + 1), dtype=np.int64)
    for chunk in row_chunks(images[::step]):
        for channel in range(channels):
            counts[channel] += np.bincount(np.ascontiguousarray(chunk[..., channel]).ravel(), minlength=white + 1)
    values = np.arange(white + 1) / white
    total = counts.sum(axis=1).clip(min=1)
    mean = counts @ values / total  # (C,)
    deviation = np.sqrt((counts * (values - mean[:, None]) ** 2).sum(axis=1) / total)
    deviation[deviation == 0] = 1.0
    return tuple(mean.tolist()), tuple(deviation.tolist())


def geometry(images: npt.NDArray) -> dict[str, Any]:
    """Defaults of ``size``, ``resize`` and ``recipe`` for images (…, H, W, C), by their longer side.

    Their own size, at least 32, and ``crop+flip``; above 96 they are 224, 256 and ``rrc+flip``.
    """
    side = max(images.shape[-3:-1])
    if side > 96:
        return {"size": 224, "resize": 256, "recipe": "rrc+flip"}
    return {"size": max(side, 32), "resize": max(side, 32), "recipe": "crop+flip"}
