"""The four kinds of augmentations in a recipe, which differ in their class variable ``kind``.

``move``    only moves bytes: a whole batch on any device is one gather.
``image``   first in its recipe: turns the decoded image into a view of the recorded size. With a method ``change`` it
            may also stand later, where it works on views.
``pixels``  turns views into views.
``mix``     last in its recipe: mixes each view with that of a partner row.

Every augmentation has a ``revision``, which is raised whenever the same spec and key give other pixels than before. An
augmentation never changes its input, and its result for one key doesn't depend on the other keys in the batch.

Pixels are uint8 or uint16, and every result has their dtype. Augmentations with a method ``check_pixels`` say which
pictures they can't take; those with a method ``check_fields`` take inputs that are no pictures too.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from softcache.datasets._hash import UInt64
from softcache.errors import UsageError
from softcache.fields import Fields
from softcache.inputs import InputField
from softcache.views._image import Pixels
from softcache.views._keys import Int64, Keys, integers
from softcache.views._move import Motion


class Augmentation(Protocol):
    """Any augmentation."""

    kind: ClassVar[str]
    revision: ClassVar[int]


@typing.runtime_checkable
class ChecksPixels(Protocol):
    """Can't take pictures of any dtype and number of channels."""

    def check_pixels(self, dtype: str, channels: int) -> None:
        """Errors: ``UsageError`` where it can't change such pixels."""


class MoveAugmentation(Augmentation, Protocol):
    """Only moves bytes."""

    def motion(self, keys: Keys, size: int) -> Motion:
        """Where the pixels of each view come from."""


class ImageAugmentation(Augmentation, Protocol):
    """Makes a view from a decoded image."""

    words: ClassVar[int]

    def view(self, image: Pixels, words: UInt64, size: int) -> Pixels:
        """image: (H, W, C); words: (``words``,) uint64 drawn from the key. Result: (size, size, C)."""


@typing.runtime_checkable
class PixelsAugmentation(Augmentation, Protocol):
    """Changes the values of pixels."""

    def change(self, images: Pixels, keys: Keys) -> Pixels:
        """images: (B, S, S, C). Result: the same shape."""


class MixAugmentation(Augmentation, Protocol):
    """Mixes a view with a partner's."""

    def weights(self, keys: Keys, size: int) -> npt.NDArray[np.float32]:
        """(B,) float32: the weight of the own label."""

    def mix(self, images: Pixels, partners: Pixels, keys: Keys) -> Pixels:
        """images, partners: (B, S, S, C). Result: the same shape."""


@typing.runtime_checkable
class TakesFields(Protocol):
    """Also takes inputs that are no pictures."""

    def check_fields(self, inputs: Mapping[str, InputField]) -> None:
        """Errors: ``UsageError`` where it can't change inputs like these."""


@typing.runtime_checkable
class FieldsAugmentation(TakesFields, Protocol):
    """Changes inputs that are no pictures."""

    def change_fields(self, fields: Fields, keys: Keys) -> Fields:
        """The same inputs with the same dtypes, shapes and lengths."""


@typing.runtime_checkable
class MixesFields(TakesFields, Protocol):
    """Mixes them with a partner's."""

    def mix_fields(self, own: Fields, partners: Fields, keys: Keys) -> Fields:
        """The same inputs with the same dtypes and shapes."""


def floating_fields(inputs: Mapping[str, InputField], augmentation: str) -> list[str]:
    """Names of the inputs of floating numbers whose shape is the same in all rows.

    Errors: ``UsageError`` where there are none.
    """
    found = [name for name, field in inputs.items() if field.dtype.startswith("float") and not field.ragged]
    if not found:
        there = "; ".join(f"{name} {field}" for name, field in inputs.items())
        raise UsageError(
            f"view recipe {augmentation!r} changes floating numbers of a fixed shape, and there are none: {there}"
        )
    return found


def partner_rows(keys: Keys, rows: int) -> Int64:
    """(B,) int64: for each key a row to mix with, uniform over the other rows (its own where there is just one)."""
    others = integers(keys.words(1)[:, 0], max(1, rows - 1))
    return np.minimum(others + (others >= keys.indices), rows - 1)
