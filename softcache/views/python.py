"""A transform of the user's own."""

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

    The transform is called with a Pillow image, as torchvision's transforms are. Before each call the generators of
    torch, ``random`` and numpy are seeded from the key. A transform with the attribute ``keyed = True`` is called with
    the (H, W, C) uint8 array and four uint64 words of the key instead, and must draw from nothing else. The result is a
    Pillow image, a (C, H, W) tensor or an (H, W, C) array, uint8, with as many channels as the input.

    A transform that stands first in its recipe gets the decoded image (``none+python:…``: the evaluation pixels). A
    later one gets the view so far. A result of another size is resized by its shorter side and centre-cropped.

    >>> mirror = Python("torchvision.transforms:RandomHorizontalFlip")  # mirrors with probability 1/2
    >>> keys = Keys(seed=0, indices=np.arange(100), view=0, position=0)
    >>> images = np.tile(np.arange(4, dtype=np.uint8)[:, None], (100, 4, 1, 1))
    >>> sorted(set(mirror.change(images, keys)[:, 0, 0, 0].tolist()))
    [0, 3]
    """

    target: str = field(metadata={"rest": True})

    kind: ClassVar[str] = "image"
    revision: ClassVar[int] = 1
    words: ClassVar[int] = WORDS

    def __post_init__(self) -> None:
        _made(self.target)  # a missing transform is found before any work is done

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
            result = transform(image, words) if _is_keyed(transform) else transform(to_pil(image))
        except SoftcacheError:
            raise
        except Exception as error:  # foreign code may raise anything; the cause stays attached for --debug
            raise DatasetError(f"{owner} failed: {type(error).__name__}: {error}") from error
        return resize_and_crop(as_pixels(result, image.shape[2], owner), size, size)


@typing.runtime_checkable
class _Keyed(typing.Protocol):
    """A transform that draws from the words of the key alone."""

    keyed: bool


def _is_keyed(transform: Any) -> bool:
    return isinstance(transform, _Keyed) and transform.keyed


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
