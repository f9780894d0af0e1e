"""Runs the teacher of a cache on some of its keys again: a part of ``softcache verify``."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from softcache.cache.reader import Cache
from softcache.cache.schema import LOGITS
from softcache.errors import CacheError

if TYPE_CHECKING:
    from softcache.cache.agreement.teacher import Rerun

log = logging.getLogger(__name__)


def ask(
    cache: Cache,
    teacher: str,
    *,
    sample: int,
    seed: int,
    teacher_weights: str | None = None,
    normalize: str | None = None,
    dataset: str | None = None,
    data_dir: str | None = None,
    augment: str | None = None,
    device: str = "auto",
) -> Rerun:
    """Runs ``teacher`` in the arithmetic of the dump.

    Errors: ``CacheError`` where the dataset or the number of classes isn't that of the cache.
    """
    # Only a check with a teacher needs all that runs one.
    from softcache.cache.agreement.data import check_dataset
    from softcache.cache.agreement.labels import label_difference
    from softcache.cache.agreement.teacher import compare, compared_column
    from softcache.config.given import recorded_dataset, recorded_recipe, remember_cache
    from softcache.config.teachers import find_teacher
    from softcache.device import DTYPES, pick_device
    from softcache.dumping.forward import Forward
    from softcache.models._arithmetic import Arithmetic
    from softcache.models._weights import fingerprint
    from softcache.views._open import open_viewed

    identity = cache.manifest.identity
    numerics, recipe = identity.teacher.numerics, identity.recipe
    if numerics.dtype not in DTYPES:
        raise CacheError(f"{cache.folder} was made in {numerics.dtype}, which this softcache doesn't know")
    viewed = open_viewed(
        recorded_dataset(cache, dataset),
        identity.dataset.split,
        data_dir=data_dir,
        augment=recorded_recipe(cache, augment),
        view_seed=recipe["seed"],
        size=recipe.get("size"),
    )
    check_dataset(cache, viewed)
    size = identity.teacher.preprocess.get("size")
    network = find_teacher(teacher, viewed.samples, weights=teacher_weights, normalize=normalize, size=size)
    column = compared_column(cache)
    layout = cache.layout(column)
    if column == LOGITS and not layout.ragged and len(layout.shape) == 1 and network.classes != layout.width:
        raise CacheError(f"{teacher} has {network.classes} classes, the cache {layout.width}")
    same_weights = fingerprint(network.model.state_dict()) == identity.teacher.weights
    where = pick_device(device)
    arithmetic = Arithmetic(numerics.amp, numerics.memory_format == "channels_last")
    network = arithmetic.apply(network.to(where, DTYPES[numerics.dtype])).eval()
    forward = Forward(network, [column], where, amp=arithmetic.amp)
    found = compare(
        cache,
        viewed,
        lambda inputs: forward(inputs)[column],
        where,
        sample=sample,
        seed=seed,
        same_weights=same_weights,
        labels=label_difference(cache, viewed.samples),
    )
    if not found.other_pixels:
        remember_cache(cache, dataset=dataset, augment=augment)
    return found
