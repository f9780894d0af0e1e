"""Does the teacher still say what a cache says it said: ``softcache verify --teacher``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from softcache.cache.agreement.labels import LabelDifference
from softcache.cache.agreement.tolerance import compare_logits
from softcache.cache.reader import Cache
from softcache.cache.schema import LOGITS
from softcache.device import reproducible
from softcache.errors import CacheError, UsageError
from softcache.views._digest import digest
from softcache.views._viewed import ViewedDataset


@dataclass(frozen=True)
class Rerun:
    """``largest``: the largest |stored - now| of any logit, at key (``row``, ``view``), where ``allowed`` was what
    the codec and the arithmetic account for. ``beyond``: keys above what is allowed for them; ``other_pixels``: keys
    whose pixels are not those of the dump; ``labels``: how the dataset's labels differ from those of the dump."""

    keys: int
    largest: float
    allowed: float
    row: int
    view: int
    beyond: int
    other_pixels: int
    same_weights: bool
    same_top1: float
    labels: LabelDifference | None = None

    @property
    def ok(self) -> bool:
        return self.beyond == 0 and self.other_pixels == 0 and self.same_weights and self.labels is None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"ok": self.ok}


def compare(
    cache: Cache,
    viewed: ViewedDataset,
    forward: Callable[[torch.Tensor], torch.Tensor],
    device: torch.device,
    *,
    sample: int = 256,
    seed: int = 0,
    same_weights: bool = True,
    labels: LabelDifference | None = None,
) -> Rerun:
    """Runs a teacher on ``sample`` random keys and compares its logits with those that the cache holds.

    ``viewed``: the cache's data in its views. ``forward``: pixels (B, H, W, C) uint8 on ``device`` → logits (B, C), in
    the arithmetic of the dump. ``same_weights``: whether its parameters are those of the dump, and ``labels``: how the
    dataset's labels differ, both for the report. How far a key may be off is said in ``tolerance``.

    Errors: ``CacheError`` where no view is complete.
    """
    if sample < 1:
        raise UsageError(f"--sample must be at least 1, is {sample}")
    numerics, views = cache.manifest.identity.teacher.numerics, cache.complete_views()
    if not views:
        raise CacheError(f"{cache.folder} has no complete view to compare with: run softcache dump again")
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
            with reproducible(tf32=numerics.tf32):
                now = forward(pixels.to(device)).cpu()
            theirs = reader.decode(stored)
            differs, allowed = compare_logits(cache, theirs, now)
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
        labels=labels,
    )
