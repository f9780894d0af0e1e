"""A user's own transform."""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from softcache.datasets._hash import UInt64
from softcache.datasets.python import named_function
from softcache.errors import DatasetError, SoftcacheError, UsageError
from softcache.views._image import Pixels, resize_and_crop, to_pil
from softcache.views._keys import Keys
from softcache.views._wrapped import WORDS, as_pixels, generators_kept, seed_generators


@dataclass(frozen=True)
class Python:
    """``python:package.module:factory`` or ``path/to/file.py:factory``: ``factory()`` gives the transform.

    It is called with a Pillow image, as torchvision's transforms are, with torch's, ``random``'s and numpy's
    generators seeded from the key. With an attribute ``keyed = True`` it is called with the (H, W, C) uint8 array and
    four uint64 words of the key instead, and draws from nothing else. It returns a Pillow image, a (C, H, W) tensor
    or an (H, W, C) array, uint8, with the channels it was given.

    First in its recipe it is given the decoded image (``none+python:…`` gives it the evaluation pixels), and later
    the view so far. Where its result hasn't the view's size, the shorter side is resized to it and the centre cropped.
    """

    target: str = field(metadata={"rest": True})

    kind: ClassVar[str] = "image"
    revision: ClassVar[int] = 1
    words: ClassVar[int] = WORDS

    def __post_init__(self) -> None:
        _made(self.target)  # a transform that can't be had is better missed before the work than in it

    def view(self, image: Pixels, words: UInt64, size: int) -> Pixels:
        """image: (H, W, C) uint8; words: (4,) uint64. Result: (size, size, C) uint8."""
        with generators_kept():
            return self._view(image, words, size)

    def change(self, images: Pixels, keys: Keys) -> Pixels:
        """images: (B, S, S, C) uint8. Result: the same shape."""
        words = keys.words(WORDS)
        changed = np.empty_like(images)
        with generators_kept():
            for place, image in enumerate(images):
                changed[place] = self._view(image, words[place], image.shape[0])
        return changed

    def _view(self, image: Pixels, words: UInt64, size: int) -> Pixels:
        owner = f"view recipe 'python:{self.target}'"
        seed_generators(words)
        try:
            transform = _made(self.target)
            result = transform(image, words) if getattr(transform, "keyed", False) else transform(to_pil(image))
        except SoftcacheError:
            raise
        except Exception as error:  # foreign code may raise anything; the cause stays attached for --debug
            raise DatasetError(f"{owner} failed: {type(error).__name__}: {error}") from error
        return resize_and_crop(as_pixels(result, image.shape[2], owner), size, size)


@functools.lru_cache(maxsize=16)
def _made(target: str) -> Any:
    try:
        factory = typing.cast(Callable[[], Any], named_function(target)[0])
        transform = factory()
    except SoftcacheError:
        raise
    except Exception as error:  # foreign code may raise anything; the cause stays attached for --debug
        raise UsageError(f"view recipe 'python:{target}' failed: {type(error).__name__}: {error}") from error
    if not callable(transform):
        raise UsageError(
            f"python:{target} gave {type(transform).__name__}: it must give a transform that can be called"
        )
    return transform
