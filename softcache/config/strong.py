"""The cache of strong views that is read beside that of weak ones (``--strong-cache``)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from softcache.cache.agreement.data import check_dataset
from softcache.cache.agreement.labels import agreed_labels
from softcache.cache.agreement.samples import check_pixels
from softcache.cache.reader import Cache
from softcache.config.caches import check_outputs
from softcache.config.given import recorded_recipe
from softcache.errors import UsageError
from softcache.views._open import Viewed, view_samples

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Strong:
    """The cache, and the data in its views."""

    cache: Cache
    viewed: Viewed


def open_strong(
    cache: Cache, weak: Cache, viewed: Viewed, outputs: Mapping[str, Sequence[Cache]], labels: str | None
) -> Strong:
    """The samples of ``viewed``, which are those of ``weak``, in the views of ``cache``. ``outputs``: what is read of
    weak caches; ``labels``: whose labels are trained on.

    Errors: ``UsageError`` where their views can't share a batch, ``CacheError`` where the cache isn't of the data or
    lacks an output, ``PixelsError`` where pixels are not those that the teacher saw.
    """
    if cache.manifest.cache_id == weak.manifest.cache_id:
        raise UsageError(
            f"--strong-cache {cache.where} is the cache of the weak views too: name one of another recipe, or take "
            "two views of one with --views-per-image 2"
        )
    recipe = cache.manifest.identity.recipe
    strong = view_samples(viewed.samples, recorded_recipe(cache), seed=recipe["seed"], size=recipe.get("size"))
    check_dataset(cache, strong)
    for one in (viewed, strong):
        if one.recipe.mix is not None:
            raise UsageError(f"--strong-cache: {one.recipe} mixes rows, so that its views have labels of their own")
    if strong.size != viewed.size:
        raise UsageError(
            f"--strong-cache {cache.where} has views of {strong.size} pixels, {weak.where} of {viewed.size}: make "
            "one of them again with the --size of the other"
        )
    check_outputs({name: [*caches, cache] for name, caches in outputs.items()})
    agreed_labels([cache], viewed.samples, labels)
    check_pixels(cache, strong)
    if cache.manifest.identity.teacher.weights != weak.manifest.identity.teacher.weights:
        log.warning(f"{cache.where} and {weak.where} are of different teachers: each view has the targets of its own")
    return Strong(cache, strong)
