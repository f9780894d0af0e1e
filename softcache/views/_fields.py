"""The dataset of keys of inputs that are no pictures: a row and a view give named tensors."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from softcache.datasets._samples import Samples
from softcache.datasets._values import batch_of, masks_of
from softcache.errors import UsageError
from softcache.fields import Fields
from softcache.inputs import InputField
from softcache.views._augmentation import FieldsAugmentation, MixesFields, TakesFields, partner_rows
from softcache.views._digest import FieldsDigest
from softcache.views._keys import Int64, Keys
from softcache.views._recipe import parse_recipe


class ViewedFields:
    """Samples whose inputs are no pictures, changed by a recipe.

    recipe: a spec of augmentations that take such inputs (``none``, ``noise``, ``mixup``, ``python``), by default that
    of the samples. seed: of the views, 0..2**64-1. ``indices`` are integers (B,): rows. No method changes the state of
    a random generator.
    """

    size = 1  # pixels of a side, which only pictures have more of

    def __init__(self, samples: Samples, recipe: str | None = None, *, seed: int = 0) -> None:
        if not 0 <= seed < 1 << 64:
            raise UsageError(f"the view seed must be in 0..2**64-1, found {seed}")
        self.samples, self.seed = samples, seed
        self.recipe = parse_recipe(samples.recipe if recipe is None else recipe)
        self._masks = masks_of(samples.values)
        for name, augmentation in zip(self.recipe.names, self.recipe.augmentations, strict=True):
            if not isinstance(augmentation, TakesFields):
                raise UsageError(
                    f"--augment {self.recipe}: {name!r} is for pictures, and the {samples.input_names} of "
                    f"{samples.spec} are none: use none, noise, mixup or code of your own"
                )
            augmentation.check_fields(self.inputs)

    def __len__(self) -> int:
        return len(self.samples)

    @functools.cached_property
    def inputs(self) -> dict[str, InputField]:
        """Dtype and shape of each input, by name."""
        return {name: held.field for name, held in sorted(self.samples.values.items())}

    @property
    def row_bytes(self) -> int:
        """Of the longest row's inputs."""
        return sum(held.row_bytes for held in self.samples.values.values())

    @property
    def bytes(self) -> int:
        """Of all rows."""
        return sum(held.values.nbytes for held in self.samples.values.values())

    @property
    def resident(self) -> bool:
        """Whether every view is what ``base`` has, so that batches are made by indexing."""
        return self.recipe.spec == "none" and not any(field.ragged for field in self.inputs.values())

    @functools.cached_property
    def digest(self) -> FieldsDigest:
        """Of a key's inputs."""
        return FieldsDigest(self.inputs)

    def identity(self) -> dict[str, Any]:
        """What the inputs depend on beside the samples, ready for JSON."""
        return {"spec": self.recipe.spec, "revisions": self.recipe.revisions, "seed": self.seed}

    def lengths(self) -> dict[str, Int64]:
        """(N,) int64 of each input whose rows have lengths of their own."""
        found = {name: held.lengths for name, held in sorted(self.samples.values.items())}
        return {name: lengths for name, lengths in found.items() if lengths is not None}

    def base(self) -> Fields:
        """All rows, over the samples' own memory: for ``resident`` views. It must not be written to."""
        tensors = {name: _tensor(held.values) for name, held in self.samples.values.items()}
        return Fields(tensors)

    def batch(self, indices: npt.ArrayLike, view: int) -> Fields:
        """The inputs of keys of one view."""
        return self.batch_views(indices, [view])[0]

    def batch_views(self, indices: npt.ArrayLike, views: Sequence[int]) -> list[Fields]:
        """``batch`` for several views."""
        rows = _rows(indices)
        clean = batch_of(self.samples.values, rows, self._masks)
        if self.recipe.spec == "none":
            return [clean] * len(views)
        return [self._changed(clean, rows, view) for view in views]

    def clean(self, indices: npt.ArrayLike) -> Fields:
        """Inputs as they are, the view of ``none``."""
        return batch_of(self.samples.values, _rows(indices), self._masks)

    def mixing(self, indices: npt.ArrayLike, view: int) -> tuple[Int64, npt.NDArray[np.float32]] | None:
        """Partner rows (B,) int64 and the weight of the own label (B,) float32; None for recipes that don't mix."""
        if self.recipe.mix is None:
            return None
        keys = Keys(self.seed, _rows(indices), view, len(self.recipe.augmentations) - 1)
        return partner_rows(keys, len(self)), self.recipe.mix.weights(keys, self.size)

    def _changed(self, clean: Fields, rows: Int64, view: int) -> Fields:
        """Through all augmentations of the recipe."""
        own = self._unmixed(clean, rows, view)
        mixing, mix = self.mixing(rows, view), self.recipe.mix
        if mixing is None or not isinstance(mix, MixesFields):
            return own
        partners = self._unmixed(batch_of(self.samples.values, mixing[0], self._masks), mixing[0], view)
        keys = Keys(self.seed, rows, view, len(self.recipe.augmentations) - 1)
        return mix.mix_fields(own, partners, keys)

    def _unmixed(self, fields: Fields, rows: Int64, view: int) -> Fields:
        for number, augmentation in enumerate(self.recipe.augmentations):
            if isinstance(augmentation, FieldsAugmentation):
                fields = augmentation.change_fields(fields, Keys(self.seed, rows, view, number))
        return fields


def _tensor(array: npt.NDArray) -> torch.Tensor:
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _rows(indices: npt.ArrayLike) -> Int64:
    rows = np.asarray(indices, dtype=np.int64)
    assert rows.ndim == 1, rows.shape
    return rows
