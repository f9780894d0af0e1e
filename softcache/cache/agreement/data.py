"""Whether a cache was made from a dataset, and whether several caches were made from the same inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from softcache.cache.column import DIGEST
from softcache.cache.reader import Cache
from softcache.errors import CacheError
from softcache.inputs import InputField
from softcache.views._open import Viewed


def check_dataset(cache: Cache, viewed: Viewed, *, recipe: bool = True) -> None:
    """Errors: ``CacheError`` where rows, split or classes are not those that the cache was made from.

    ``recipe``: whether the views are made by the cache's own recipe, whose revisions must then be those of today.
    """
    recorded, samples = cache.manifest.identity.dataset, viewed.samples
    found = {"split": samples.split, "rows": len(samples), "classes": list(samples.classes)}
    wanted = {"split": recorded.split, "rows": recorded.rows, "classes": cache.manifest.state.class_names}
    found["inputs"] = _described(viewed.inputs)
    wanted["inputs"] = _described(recorded.inputs)
    for key, value in wanted.items():
        if found[key] != value:
            raise CacheError(
                f"{cache.where} was made from {recorded.spec} with {key} {_short(value)}, "
                f"{samples.spec} has {_short(found[key])}: name the right --dataset or --cache"
            )
    if recipe and viewed.recipe.revisions != cache.manifest.identity.recipe.get("revisions"):
        raise CacheError(
            f"{cache.where} was made with revisions {cache.manifest.identity.recipe.get('revisions')} of its recipe, "
            f"this softcache has {viewed.recipe.revisions}: make the cache again"
        )


def check_together(caches: Sequence[Cache], views: Sequence[int]) -> None:
    """Whether caches speak of the same inputs: equal fingerprints of the data and equal recipes, or else (another
    library reads a dataset otherwise, a fingerprint was taken quick or full) equal digests of all rows.

    Errors: ``CacheError`` that says what differs.
    """
    first = caches[0]
    for other in caches[1:]:
        ours, theirs = first.manifest.identity, other.manifest.identity
        if (ours.dataset.fingerprint, ours.recipe) == (theirs.dataset.fingerprint, theirs.recipe):
            continue
        for view in views:
            differing = digests(first, view) != digests(other, view)
            if differing.any():
                keys = [key for key in ours.recipe if ours.recipe[key] != theirs.recipe.get(key)]
                shown = "; ".join(f"{key} {ours.recipe[key]} and {theirs.recipe.get(key)}" for key in keys)
                raise CacheError(
                    f"{first.where} and {other.where} are of different {first.input_names} in "
                    f"{int(differing.sum()):,} of {first.rows:,} rows of view {view} "
                    f"({shown or 'their datasets differ'}): make them with the same --dataset, --augment, --size "
                    "and --view-seed"
                )


def digests(cache: Cache, view: int) -> np.ndarray:
    """(N,) uint32: what identifies the inputs of a view's keys, from any column that is there."""
    for column in cache.manifest.columns:
        if view in cache.complete_views(column):
            mapped = cache.column(column).map(view)[DIGEST]
            return np.concatenate([mapped.between(part, 0, rows) for part, rows in enumerate(mapped.lengths)])
    raise CacheError(f"{cache.where} has no complete column of view {view}: run softcache dump again to complete it")


def _described(inputs: Mapping[str, InputField]) -> str:
    return "; ".join(f"{name} {field}" for name, field in sorted(inputs.items()))


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) < 60 else text[:56] + " …"
