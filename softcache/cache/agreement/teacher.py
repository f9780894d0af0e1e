"""Does the teacher still say what a cache says it said: ``softcache verify --teacher``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from softcache.cache.agreement.labels import LabelDifference
from softcache.cache.agreement.recorded import comparable
from softcache.cache.agreement.tolerance import compare_values
from softcache.cache.column import OFFSET
from softcache.cache.reader import Cache
from softcache.cache.shares import own_values
from softcache.device import reproducible
from softcache.errors import CacheError, UsageError
from softcache.fields import Inputs
from softcache.ragged import counts_of, padded
from softcache.views._open import Viewed


@dataclass(frozen=True)
class Rerun:
    """``column``: what was compared; ``largest``: the largest |stored - now| of any of its values, at key (``row``,
    ``view``), where ``allowed`` was what the codec and the arithmetic account for. ``beyond``: keys above what is
    allowed for them; ``other_pixels``: keys whose pixels are not those of the dump; ``labels``: how the dataset's
    labels differ from those of the dump."""

    keys: int
    largest: float
    allowed: float
    row: int
    view: int
    beyond: int
    other_pixels: int
    same_weights: bool
    column: str
    same_top1: float | None
    labels: LabelDifference | None = None

    @property
    def ok(self) -> bool:
        return self.beyond == 0 and self.other_pixels == 0 and self.same_weights and self.labels is None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"ok": self.ok}


def compare(
    cache: Cache,
    viewed: Viewed,
    forward: Callable[[Inputs], torch.Tensor],
    device: torch.device,
    *,
    sample: int = 256,
    seed: int = 0,
    same_weights: bool = True,
    labels: LabelDifference | None = None,
) -> Rerun:
    """Runs a teacher on ``sample`` random keys and compares what it says with the first of the cache's columns
    that can be compared.

    ``viewed``: the cache's data in its views. ``forward``: inputs of B keys on ``device`` → the column's
    values (B, …), in the arithmetic of the dump. ``same_weights``: whether its parameters are those of the dump, and
    ``labels``: how the dataset's labels differ, both for the report. How far a key may be off is said in ``tolerance``.

    Errors: ``CacheError`` where no view is complete, and as ``compared_column``.
    """
    if sample < 1:
        raise UsageError(f"--sample must be at least 1, is {sample}")
    column, batch = compared_column(cache), cache.manifest.identity.grid.batch
    numerics, views = cache.manifest.identity.teacher.numerics, cache.complete_views(column)
    if not views:
        raise CacheError(f"{cache.where} has no complete view to compare with: run softcache dump again")
    rng = np.random.default_rng(seed)
    reader, found = cache.column(column), []
    kept = np.arange(cache.rows) if reader.layout.share is None else np.flatnonzero(cache.places(column))
    total = len(kept) * len(views)
    chosen = np.sort(rng.choice(total, min(sample, total), replace=False))
    for place, view in enumerate(views):
        rows = kept[chosen[chosen // len(kept) == place] % len(kept)]
        for first in range(0, len(rows), batch):
            some = rows[first : first + batch]
            stored = reader.gather(view, some)
            inputs = viewed.batch(some, view)
            other = viewed.digest(inputs).numpy() != stored["digest"]
            with reproducible(tf32=numerics.tf32):
                now = forward(inputs.to(device)).cpu()
            theirs, offset = reader.decode(stored), stored.get(OFFSET)
            if offset is not None:
                now = own_values(column, now, counts_of(offset), column)
            differs, allowed = compare_values(cache, column, theirs, now, offset)
            same = (_largest(theirs) == _largest(now)).double()
            if offset is not None:  # a key's share of places
                same = padded(same, offset).sum(1) / torch.from_numpy(counts_of(offset)).clamp_min(1)
            parts = (differs, allowed, same, torch.from_numpy(other).double())
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
        column=column,
        same_top1=float(same_.mean()) if reader.layout.kind == "classes" else None,
        labels=labels,
    )


def compared_column(cache: Cache) -> str:
    """The column that a teacher is compared with. Errors: ``CacheError`` where none can be."""
    found = comparable(cache)
    if not found:
        raise CacheError(
            f"every column of {cache.where} was converted from a codec that had lost something already, so that a "
            "teacher can't be compared with it: verify --teacher the cache that it was converted from"
        )
    return found[0]


def _largest(values: torch.Tensor) -> torch.Tensor:
    """(B,): where the largest value of each key, or place, is."""
    return values.reshape(len(values), math.prod(values.shape[1:])).argmax(1)
