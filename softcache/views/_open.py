"""Opening a dataset with a recipe."""

from __future__ import annotations

from softcache.datasets._open import open_samples
from softcache.views._viewed import ViewedDataset


def open_viewed(
    dataset: str,
    split: str,
    *,
    data_dir: str | None = None,
    download: bool = False,
    augment: str | None = None,
    view_seed: int = 0,
    size: int | None = None,
) -> ViewedDataset:
    """One split of a dataset, augmented by a recipe (by default that of the dataset).

    ``size``: side of the views in pixels, by default the dataset's. Errors: ``DatasetError`` where the samples aren't
    there or can't be read, ``UsageError`` for an unknown dataset or recipe or a size that can't be.
    """
    samples = open_samples(dataset, split, data_dir=data_dir, download=download)
    return ViewedDataset(samples, augment, seed=view_seed, size=size)
