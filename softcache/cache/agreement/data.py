"""Whether a cache and a dataset speak of the same pixels, and if not, why."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NoReturn

import numpy as np

from softcache.cache.agreement.decoders import explain_mismatch
from softcache.cache.reader import Cache
from softcache.errors import CacheError, PixelsError
from softcache.views._viewed import ViewedDataset

log = logging.getLogger(__name__)


def check_dataset(cache: Cache, viewed: ViewedDataset, *, recipe: bool = True) -> None:
    """Errors: ``CacheError`` where rows, split or classes are not those that the cache was made from.

    ``recipe``: whether the views are made by the cache's own recipe, whose revisions must then be those of today.
    """
    recorded, samples = cache.manifest.identity.dataset, viewed.samples
    found = {"split": samples.split, "rows": len(samples), "classes": list(samples.classes)}
    wanted = {"split": recorded.split, "rows": recorded.rows, "classes": recorded.class_names}
    for key, value in wanted.items():
        if found[key] != value:
            raise CacheError(
                f"{cache.folder} was made from {recorded.spec} with {key} {_short(value)}, "
                f"{samples.spec} has {_short(found[key])}: name the right --dataset or --cache"
            )
    if recipe and viewed.recipe.revisions != cache.manifest.identity.recipe.get("revisions"):
        raise CacheError(
            f"{cache.folder} was made with revisions {cache.manifest.identity.recipe.get('revisions')} of its recipe, "
            f"this softcache has {viewed.recipe.revisions}: make the cache again"
        )


def check_pixels(cache: Cache, viewed: ViewedDataset, *, accept_close: bool = False) -> None:
    """Compares the kept samples with the same keys' pixels now.

    Errors: ``PixelsError`` that tells another decoder (close pixels, accepted with ``accept_close``) from another
    crop or dataset (never accepted).
    """
    rows, theirs = cache.samples
    ours = viewed.batch(rows, 0).numpy()
    if np.array_equal(ours, theirs):
        return
    wrong = np.flatnonzero((ours != theirs).reshape(len(rows), -1).any(1))
    kind = explain_mismatch(ours, theirs)
    if kind == "close" and accept_close:
        log.warning(f"{len(wrong)} of {len(rows)} kept samples differ by a few grey levels: accepted by --pixels close")
        return
    raise PixelsError(f"row {int(rows[wrong[0]])} in view 0 has other pixels than the teacher saw: {_cause(kind)}")


def check_together(caches: Sequence[Cache], views: Sequence[int]) -> None:
    """Whether caches speak of the same pixels: equal fingerprints of the data and equal recipes, or else (another
    library reads a dataset otherwise, a fingerprint was taken quick or full) equal digests of all rows.

    Errors: ``CacheError`` that says what differs.
    """
    first = caches[0]
    for other in caches[1:]:
        ours, theirs = first.manifest.identity, other.manifest.identity
        if ours.classes != theirs.classes:
            raise CacheError(
                f"{first.folder} has logits of {ours.classes} classes, {other.folder} of {theirs.classes}: "
                "they can't be combined"
            )
        if (ours.dataset.fingerprint, ours.recipe) == (theirs.dataset.fingerprint, theirs.recipe):
            continue
        for view in views:
            differing = digests(first, view) != digests(other, view)
            if differing.any():
                keys = [key for key in ours.recipe if ours.recipe[key] != theirs.recipe.get(key)]
                shown = "; ".join(f"{key} {ours.recipe[key]} and {theirs.recipe.get(key)}" for key in keys)
                raise CacheError(
                    f"{first.folder} and {other.folder} are of different pixels in {int(differing.sum()):,} of "
                    f"{first.rows:,} rows of view {view} ({shown or 'their datasets differ'}): "
                    "make them with the same --dataset, --augment, --size and --view-seed"
                )


def digests(cache: Cache, view: int) -> np.ndarray:
    """(N,) uint32: what identifies the pixels of a view's keys, from any column that is there."""
    for column in cache.manifest.columns:
        if view in cache.complete_views(column):
            return np.concatenate(cache.column(column).map(view)["digest"].parts)
    raise CacheError(f"{cache.folder} has no complete column of view {view}: run softcache dump again to complete it")


def refuse_pixels(error: PixelsError, caches: list[Cache], viewed: ViewedDataset) -> NoReturn:
    """Raises ``error`` again with the likely cause, found from the kept samples."""
    for cache in caches:
        rows, theirs = cache.samples
        ours = viewed.batch(rows, 0).numpy()
        if not np.array_equal(ours, theirs):
            raise PixelsError(f"{error}: {_cause(explain_mismatch(ours, theirs))}") from None
    raise PixelsError(
        f"{error}, though the kept samples agree: the data has changed in some rows since the dump, or a recipe of "
        "your own gives other pixels for the same key"
    ) from None


def _cause(kind: str) -> str:
    if kind == "close":
        return (
            "they are close, as from another version of an image decoder; use the recorded versions (softcache info), "
            "or accept the difference with --pixels close"
        )
    return "they are of another crop or another image; is this the dataset that the cache was made from?"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) < 60 else text[:56] + " …"
