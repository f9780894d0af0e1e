"""The dataset of keys: a row and a view give pixels, equal in every process and on every machine."""

from __future__ import annotations

import logging
import math
import typing
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from softcache.datasets._samples import Samples
from softcache.errors import DatasetError, UsageError
from softcache.inputs import PIXELS, InputField, number_bytes
from softcache.views._augmentation import ChecksPixels, MoveAugmentation, PixelsAugmentation, partner_rows
from softcache.views._digest import PixelsDigest
from softcache.views._image import Pixels, resize_and_crop
from softcache.views._keys import Int64, Keys
from softcache.views._move import Motion, move, move_array, still
from softcache.views._recipe import parse_recipe

log = logging.getLogger(__name__)

BASE_LIMIT = 1 << 30  # the most bytes of evaluation pixels that are kept in memory


class ViewedDataset:
    """Samples that are pictures, augmented by a recipe.

    Pixels are uint8, or uint16 for pictures of 16 bits. recipe: a spec, by default that of the samples. seed: of the
    views, 0..2**64-1. size: the side of a view in pixels, by default that of the samples. ``indices`` are integers
    (B,): rows. No method changes the state of a random
    generator. Resized images that are kept in memory are not pickled.

    >>> from softcache.views._open import open_viewed
    >>> viewed = open_viewed("digits", "train", augment="crop+flip")
    >>> pixels = viewed.batch([3, 5], view=1)
    >>> pixels.shape, pixels.dtype
    (torch.Size([2, 32, 32, 1]), torch.uint8)
    >>> bool((viewed.batch([5], view=1)[0] == pixels[1]).all())  # a key has the same pixels in every batch
    True
    """

    def __init__(self, samples: Samples, recipe: str | None = None, *, seed: int = 0, size: int | None = None) -> None:
        if not 0 <= seed < 1 << 64:
            raise UsageError(f"the view seed must be in 0..2**64-1, found {seed}")
        self.samples = samples
        if recipe is None and samples.advice:
            log.info(samples.advice)
        self.recipe = parse_recipe(samples.recipe if recipe is None else recipe)
        assert samples.pictures, samples.input_names
        for augmentation in self.recipe.augmentations:
            if isinstance(augmentation, ChecksPixels):
                augmentation.check_pixels(samples.dtype, samples.channels)
        self.seed = seed
        self.size = samples.size if size is None else size
        if self.size < 1:
            raise UsageError(f"the size of a view must be at least 1 pixel, found {self.size}")
        self.resize = samples.resize_for(self.size)
        self._bases: Pixels | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_bases": None}

    @property
    def resident(self) -> bool:
        """Whether samples are in memory and only their bytes are moved: ``move`` makes views of ``base_images``."""
        return self.recipe.moves and self.samples.images is not None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one key's pixels: (size, size, C)."""
        return (self.size, self.size, self.samples.channels)

    @property
    def inputs(self) -> dict[str, InputField]:
        """Dtype and shape of a key's inputs, by name."""
        return {PIXELS: InputField(self.samples.dtype, list(self.shape))}

    @property
    def row_bytes(self) -> int:
        """Of one key's pixels."""
        return math.prod(self.shape) * number_bytes(self.samples.dtype)

    @property
    def bytes(self) -> int:
        """Of the evaluation pixels of all rows."""
        return len(self) * self.row_bytes

    @property
    def digest(self) -> PixelsDigest:
        """Of a key's inputs."""
        return PixelsDigest()

    def identity(self) -> dict[str, Any]:
        """What the inputs depend on beside the samples, ready for JSON."""
        found = {"spec": self.recipe.spec, "revisions": self.recipe.revisions, "seed": self.seed}
        return found | {"size": self.size, "resize": self.resize}

    def lengths(self) -> dict[str, Int64]:
        """Of inputs whose rows have lengths of their own, which pictures have none of."""
        return {}

    def pixels(self, index: int, view: int) -> Pixels:
        """One key's pixels: (size, size, C), C-contiguous."""
        return np.ascontiguousarray(self._views(_rows([index]), [view])[0][0])

    def batch(self, indices: npt.ArrayLike, view: int) -> torch.Tensor:
        """Pixels of keys of one view: (B, size, size, C)."""
        return self.batch_views(indices, [view])[0]

    def batch_views(self, indices: npt.ArrayLike, views: Sequence[int]) -> list[torch.Tensor]:
        """``batch`` for several views. Each row is decoded once, and once more for each view that mixes it."""
        return [torch.from_numpy(images) for images in self._views(_rows(indices), views)]

    def clean(self, indices: npt.ArrayLike) -> torch.Tensor:
        """Evaluation pixels, the view of ``none``: (B, size, size, C)."""
        return torch.from_numpy(self._base(_rows(indices)))

    def base_images(self) -> Pixels:
        """Evaluation pixels of all rows: (N, size, size, C), read-only by convention.

        This is the array of the samples where its images have the view's size already. Otherwise it is computed once.
        Errors: ``DatasetError`` for samples that are not in memory.
        """
        images = self.samples.images
        if images is None:
            raise DatasetError(f"{self.samples.spec} is not in memory: its views are decoded from files")
        if images.shape[1:3] == (self.size, self.size) and self.resize == self.size:
            return images
        if self._bases is None:
            bases = np.empty((len(images), self.size, self.size, images.shape[3]), images.dtype)
            for row, image in enumerate(images):
                bases[row] = resize_and_crop(image, self.resize, self.size)
            self._bases = bases
        return self._bases

    @property
    def keeps_bases(self) -> bool:
        """Whether views are made of ``base_images`` rather than of images that are resized one by one."""
        return self.recipe.first is None and self._bases_fit

    @property
    def _bases_fit(self) -> bool:
        """Whether the evaluation pixels of all rows exist already, or are small enough to be computed and kept."""
        images = self.samples.images
        if images is None:
            return False
        needed = self.bytes
        return self._bases is not None or needed <= BASE_LIMIT or images.shape[1:3] == (self.size, self.size)

    def keep_bases(self, bases: Pixels) -> None:
        """Uses ``base_images`` (N, size, size, C) that another process computed."""
        assert bases.shape == (len(self), *self.shape), bases.shape
        self._bases = bases

    def parameters(self, indices: npt.ArrayLike, view: int) -> dict[str, npt.NDArray[np.int32]]:
        """What ``move_by`` needs for keys of a recipe that only moves bytes: name → (B,) int32.

        This is cheap for all keys of an epoch at once. The result can be indexed and moved to a device.
        """
        motion = self._motion(_rows(indices), view)
        return {
            "top": motion.top.astype(np.int32),
            "left": motion.left.astype(np.int32),
            "mirror": motion.mirror.astype(np.int32),
        }

    def move_by(self, base: torch.Tensor, parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        """Views from evaluation pixels, by indexing and without waiting for the device.

        base: (B, size, size, C); parameters: as ``parameters`` gives, (B,) integers on the same device.
        Result: the same bytes as ``batch``.
        """
        outside = self._motion(_rows([]), 0)
        return move(base, **parameters, pad=outside.pad, fill=outside.fill)

    def move(self, base: torch.Tensor, indices: npt.ArrayLike, view: int) -> torch.Tensor:
        """``move_by`` with the parameters of these keys."""
        parameters = self.parameters(indices, view)
        on_device = {name: torch.from_numpy(part).to(base.device) for name, part in parameters.items()}
        return self.move_by(base, on_device)

    def mixing(self, indices: npt.ArrayLike, view: int) -> tuple[Int64, npt.NDArray[np.float32]] | None:
        """Partner rows (B,) int64 and the weight of the own label (B,) float32; None for recipes that don't mix."""
        if self.recipe.mix is None:
            return None
        keys = self._keys(_rows(indices), view, len(self.recipe.augmentations) - 1)
        return partner_rows(keys, len(self)), self.recipe.mix.weights(keys, self.size)

    def _keys(self, rows: Int64, view: int, position: int) -> Keys:
        return Keys(self.seed, rows, view, position)

    def _base(self, rows: Int64) -> Pixels:
        """Evaluation pixels of some rows, in memory of their own."""
        if self._bases_fit:
            return np.asarray(self.base_images()[rows])
        bases = self._empty(len(rows))
        for place, row in enumerate(rows.tolist()):
            bases[place] = resize_and_crop(self.samples.image(row), self.resize, self.size)
        return bases

    def _empty(self, count: int) -> Pixels:
        return np.empty((count, *self.shape), self.samples.dtype)

    def _views(self, rows: Int64, views: Sequence[int]) -> list[Pixels]:
        """Finished views, (B, size, size, C) each."""
        own = self._unmixed(rows, views)
        mix, last = self.recipe.mix, len(self.recipe.augmentations) - 1
        if mix is None:
            return own
        mixed = []
        for images, view in zip(own, views, strict=True):
            keys = self._keys(rows, view, last)
            partners = self._unmixed(partner_rows(keys, len(self)), [view])[0]
            mixed.append(mix.mix(images, partners, keys))
        return mixed

    def _unmixed(self, rows: Int64, views: Sequence[int]) -> list[Pixels]:
        """Views through all augmentations but the one that mixes."""
        if self.recipe.first is None:
            base = self._base(rows)
            starts = [base] * len(views)
        else:
            starts = self._first(rows, views)
        return [self._between(images, rows, view) for images, view in zip(starts, views, strict=True)]

    def _first(self, rows: Int64, views: Sequence[int]) -> list[Pixels]:
        """Views after the augmentation that takes the decoded image; at any time one decoded image is in memory."""
        first = self.recipe.first
        assert first is not None
        words = [self._keys(rows, view, 0).words(first.words) for view in views]
        starts = [self._empty(len(rows)) for _ in views]
        for place, row in enumerate(rows.tolist()):
            image = self.samples.image(row)
            for start, of_view in zip(starts, words, strict=True):
                start[place] = first.view(image, of_view[place], self.size)
        return starts

    def _between(self, images: Pixels, rows: Int64, view: int) -> Pixels:
        """The augmentations in the middle. Neighbours that only move bytes are applied as one motion."""
        motion = still(len(rows))
        for number, augmentation in self.recipe.between:
            keys = self._keys(rows, view, number)
            if augmentation.kind == "move":
                motion = motion.then(typing.cast(MoveAugmentation, augmentation).motion(keys, self.size))
            else:
                images = move_array(images, motion)
                images = typing.cast(PixelsAugmentation, augmentation).change(images, keys)
                motion = still(len(rows))
        return move_array(images, motion)

    def _motion(self, rows: Int64, view: int) -> Motion:
        """All augmentations of a recipe that only moves bytes, as one."""
        assert self.recipe.moves, f"{self.recipe} does more than to move bytes"
        motion = still(len(rows))
        for number, augmentation in self.recipe.between:
            keys = self._keys(rows, view, number)
            motion = motion.then(typing.cast(MoveAugmentation, augmentation).motion(keys, self.size))
        return motion


def _rows(indices: npt.ArrayLike) -> Int64:
    rows = np.asarray(indices, dtype=np.int64)
    assert rows.ndim == 1, rows.shape
    return rows
