"""A transform of the user's own."""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch

from softcache.datasets._hash import UInt64
from softcache.datasets.python import named_function
from softcache.errors import DatasetError, SoftcacheError, UsageError
from softcache.fields import Fields
from softcache.inputs import InputField
from softcache.views._image import Pixels, fits_pillow, resize_and_crop, to_pil
from softcache.views._keys import Keys
from softcache.views._wrapped import WORDS, as_pixels, generators_kept, seed_generators


@dataclass(frozen=True)
class Python:
    """``python:package.module:factory`` or ``path/to/file.py:factory``: ``factory()`` gives the transform.

    The transform is called with a Pillow image, as torchvision's transforms are, or with the (H, W, C) array of pixels
    that Pillow has no image for (other than 1 or 3 channels, or several of 16 bits). Before each call the generators of
    torch, ``random`` and numpy are seeded from the key. A transform with the attribute ``keyed = True`` is called with
    the (H, W, C) array and four uint64 words of the key instead, and must draw from nothing else. The result is a
    Pillow image, a (C, H, W) tensor or an (H, W, C) array, with the dtype and as many channels as the input.

    A transform that stands first in its recipe gets the decoded image (``none+python:…``: the evaluation pixels). A
    later one gets the view so far. A result of another size is resized by its shorter side and centre-cropped.

    Of inputs that are no pictures it gets a dictionary of arrays, and gives one of the same names, dtypes and shapes.

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
        """image: (H, W, C); words: (4,) uint64. Result: (size, size, C)."""
        with generators_kept():
            return self._view(image, words, size)

    def change(self, images: Pixels, keys: Keys) -> Pixels:
        """images: (B, S, S, C). Result: the same shape."""
        words = keys.words(WORDS)
        changed = np.empty_like(images)
        with generators_kept():
            for place, image in enumerate(images):
                changed[place] = self._view(image, words[place], image.shape[0])
        return changed

    def check_fields(self, inputs: Mapping[str, InputField]) -> None:
        """Whether it can take them shows when it is called."""

    def change_fields(self, fields: Fields, keys: Keys) -> Fields:
        """Calls the transform with each key's inputs, a dictionary of arrays. It gives such a dictionary of arrays of
        the same names, dtypes and shapes.

        Errors: ``DatasetError`` for other ones.
        """
        words, arrays = keys.words(WORDS), fields.arrays()
        changed = {name: tensor.clone() for name, tensor in fields.tensors.items()}
        with generators_kept():
            for place in range(len(fields)):
                sample = {name: np.array(of_all[place]) for name, of_all in arrays.items()}
                made = self._changed(sample, words[place])
                for name, array in made.items():
                    own = slice(len(array)) if name in fields.lengths else ...
                    changed[name][place][own] = torch.from_numpy(np.ascontiguousarray(array))
        return Fields(changed, fields.lengths, fields.masks, fields.pads)

    def _changed(self, sample: dict[str, np.ndarray], words: UInt64) -> dict[str, np.ndarray]:
        shapes = {name: (array.dtype, array.shape) for name, array in sample.items()}
        result = self._called(sample, words)
        found = {}
        if isinstance(result, Mapping):
            found = {str(name): np.asarray(array) for name, array in result.items()}
        if {name: (array.dtype, array.shape) for name, array in found.items()} != shapes:
            was = ", ".join(f"{name} {dtype} {shape}" for name, (dtype, shape) in shapes.items())
            now = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in found.items())
            raise DatasetError(f"{self._owner} must give {was}, gave {now or type(result).__name__}")
        return found

    @property
    def _owner(self) -> str:
        return f"view recipe 'python:{self.target}'"

    def _called(self, given: Any, words: UInt64) -> Any:
        """What the transform makes of an image or of a sample's arrays."""
        seed_generators(words)
        try:
            transform = _made(self.target)
            if _is_keyed(transform):
                return transform(given, words)
            if isinstance(given, np.ndarray) and fits_pillow(given):
                given = to_pil(given)
            return transform(given)
        except SoftcacheError:
            raise
        except Exception as error:  # foreign code may raise anything; the cause stays attached for --debug
            raise DatasetError(f"{self._owner} failed: {type(error).__name__}: {error}") from error

    def _view(self, image: Pixels, words: UInt64, size: int) -> Pixels:
        return resize_and_crop(as_pixels(self._called(image, words), image, self._owner), size, size)


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
