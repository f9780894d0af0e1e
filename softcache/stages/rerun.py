"""Does the teacher still say what a cache says it said: ``softcache verify --teacher``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from softcache.cache.reader import Cache
from softcache.cache.schema import LOGITS
from softcache.errors import CacheError, UsageError
from softcache.models._weights import fingerprint
from softcache.stages.agreement import check_dataset
from softcache.stages.dump import DTYPES
from softcache.stages.places import find_teacher, open_viewed
from softcache.stages.trust import recorded_dataset, recorded_recipe
from softcache.training.config import pick_device, tf32
from softcache.training.dumping import Forward
from softcache.views._digest import digest

# Of the largest logit's size: what another batch, device or library version may change, by the arithmetic's precision.
TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "tf32": 1e-2, "bf16": 5e-2, "fp16": 1e-2}


@dataclass(frozen=True)
class Rerun:
    """``largest``: the largest |stored - now| of any logit, at key (``row``, ``view``), where ``allowed`` was what
    the codec and the arithmetic account for. ``beyond``: keys above what is allowed for them; ``other_pixels``: keys
    whose pixels are not those of the dump."""

    keys: int
    largest: float
    allowed: float
    row: int
    view: int
    beyond: int
    other_pixels: int
    same_weights: bool
    same_top1: float

    @property
    def ok(self) -> bool:
        return self.beyond == 0 and self.other_pixels == 0 and self.same_weights

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"ok": self.ok}


def rerun(
    cache: Cache,
    teacher: str,
    *,
    sample: int = 256,
    seed: int = 0,
    teacher_weights: str | None = None,
    normalize: str | None = None,
    dataset: str | None = None,
    data_dir: str | None = None,
    augment: str | None = None,
    device: str = "auto",
) -> Rerun:
    """Runs ``teacher`` on ``sample`` random keys, in the arithmetic of the dump, and compares logits.

    A key may differ by what the codec does to the new logits, and by ``TOLERANCE`` of the largest of them on top
    (several times, as the stored ones were another input of the codec). Errors: ``CacheError`` where no view is
    complete or the dataset isn't that of the cache.
    """
    if sample < 1:
        raise UsageError(f"--sample must be at least 1, is {sample}")
    numerics, views = cache.manifest.identity.teacher.numerics, cache.complete_views()
    if not views:
        raise CacheError(f"{cache.folder} has no complete view to compare with: run softcache dump again")
    if numerics.dtype not in DTYPES:
        raise CacheError(f"{cache.folder} was made in {numerics.dtype}, which this softcache doesn't know")
    recipe = cache.manifest.identity.recipe
    viewed = open_viewed(
        recorded_dataset(cache, dataset),
        cache.manifest.identity.dataset.split,
        data_dir=data_dir,
        augment=recorded_recipe(cache, augment),
        view_seed=recipe["seed"],
        size=recipe["size"],
    )
    check_dataset(cache, viewed)
    size = cache.manifest.identity.teacher.preprocess.get("size")
    network = find_teacher(teacher, viewed.samples, weights=teacher_weights, normalize=normalize, size=size)
    if network.classes != cache.manifest.identity.classes:
        raise CacheError(f"{teacher} has {network.classes} classes, the cache {cache.manifest.identity.classes}")
    same_weights = fingerprint(network.model.state_dict()) == cache.manifest.identity.teacher.weights
    where = pick_device(device)
    network = network.to(where, DTYPES[numerics.dtype]).eval()
    if numerics.memory_format == "channels_last":
        network.to(memory_format=torch.channels_last)
    forward = Forward(network, [], where, amp=numerics.amp)
    arithmetic = numerics.amp if numerics.amp in TOLERANCE else "tf32" if numerics.tf32 else numerics.dtype
    rng = np.random.default_rng(seed)
    total = cache.rows * len(views)
    chosen = np.sort(rng.choice(total, min(sample, total), replace=False))
    reader, found = cache.column(LOGITS), []
    for place, view in enumerate(views):
        rows = chosen[chosen // cache.rows == place] % cache.rows
        for first in range(0, len(rows), numerics.batch):
            some = rows[first : first + numerics.batch]
            stored = reader.gather(view, some)
            pixels = viewed.batch(some, view)
            other = digest(pixels).numpy() != stored["digest"]
            with tf32(numerics.tf32):
                now = forward(pixels.to(where))[0].cpu().double()
            theirs = cache.decode(stored).double()
            ours = cache.codec.decode(cache.codec.encode(now.float())).double()
            differs = (theirs - now).abs().amax(1)
            slack = 4 * TOLERANCE[arithmetic] * now.abs().amax(1).clamp_min(1e-6)
            allowed = (ours - now).abs().amax(1) + slack
            same = theirs.argmax(1) == now.argmax(1)
            parts = (differs, allowed, same.double(), torch.from_numpy(other).double())
            found.append((some, np.full(len(some), view), *(part.numpy() for part in parts)))
        reader.release(view)
    rows_, views_, differs_, allowed_, same_, other_ = (np.concatenate(part) for part in zip(*found, strict=True))
    # A NaN is beyond whatever is allowed.
    worst = int(np.argmax(np.nan_to_num(differs_ / allowed_, nan=np.inf)))
    return Rerun(
        keys=len(rows_),
        largest=float(differs_[worst]),
        allowed=float(allowed_[worst]),
        row=int(rows_[worst]),
        view=int(views_[worst]),
        beyond=int((~(differs_ <= allowed_)).sum()),
        other_pixels=int(other_.sum()),
        same_weights=same_weights,
        same_top1=float(same_.mean()),
    )
