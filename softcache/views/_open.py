"""Opening a dataset with a recipe."""

from __future__ import annotations

from softcache.datasets._open import open_samples
from softcache.datasets._samples import Samples
from softcache.errors import UsageError
from softcache.views._fields import ViewedFields
from softcache.views._viewed import ViewedDataset

Viewed = ViewedDataset | ViewedFields


def open_viewed(
    dataset: str,
    split: str,
    *,
    data_dir: str | None = None,
    download: bool = False,
    augment: str | None = None,
    view_seed: int = 0,
    size: int | None = None,
) -> Viewed:
    """One split of a dataset, augmented by a recipe (by default that of the dataset).

    ``size``: side of the views in pixels, by default the dataset's. Errors: ``DatasetError`` where the samples aren't
    there or can't be read, ``UsageError`` for an unknown dataset or recipe or a size that can't be.
    """
    samples = open_samples(dataset, split, data_dir=data_dir, download=download)
    return view_samples(samples, augment, seed=view_seed, size=size)


def view_samples(samples: Samples, recipe: str | None = None, *, seed: int = 0, size: int | None = None) -> Viewed:
    """Samples in the views of a recipe, pictures or others. Errors: ``UsageError`` as ``open_viewed``."""
    if samples.pictures:
        return ViewedDataset(samples, recipe, seed=seed, size=size)
    if size not in (None, samples.size):
        raise UsageError(f"--size {size}: the {samples.input_names} of {samples.spec} are no pictures")
    return ViewedFields(samples, recipe, seed=seed)
