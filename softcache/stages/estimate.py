"""What a dump will take, before it starts: bytes from arithmetic, time from a few timed batches."""

from __future__ import annotations

import dataclasses
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from softcache import registry
from softcache.cache.schema import HintColumn, Identity
from softcache.console import duration, size
from softcache.errors import CacheError
from softcache.training.dumping import Forward
from softcache.views._viewed import ViewedDataset

TIMED_BATCHES = 3


@dataclass(frozen=True)
class Estimate:
    """``bytes_per_key``: column → bytes. ``existing``: bytes that the folder already holds."""

    keys: int
    bytes_per_key: dict[str, int]
    existing: int
    free: int
    keys_per_second: float

    @property
    def total(self) -> int:
        return self.keys * sum(self.bytes_per_key.values())

    def describe(self) -> list[tuple[str, str]]:
        """Rows of a table."""
        rows = [("keys", f"{self.keys:,}")]
        rows += [(f"{column} per key", size(count)) for column, count in self.bytes_per_key.items()]
        rows += [
            ("all shards", size(self.total)),
            ("already there", size(self.existing)),
            ("free", size(self.free)),
        ]
        speed = f"{duration(self.keys / self.keys_per_second)} at {self.keys_per_second:,.0f} keys/s"
        return [*rows, ("time for all keys", speed)]

    def to_json(self) -> dict[str, object]:
        return {**dataclasses.asdict(self), "total": self.total}


def estimate(
    forward: Forward,
    viewed: ViewedDataset,
    identity: Identity,
    hints: dict[str, HintColumn],
    views: int,
    folder: Path,
    *,
    timed: bool = True,
) -> Estimate:
    """``timed=False`` leaves the teacher alone: bytes only."""
    codec = registry.create("codecs", identity.codec)
    logits = sum(
        int(np.prod(tail)) * np.dtype(dtype).itemsize for dtype, tail in codec.arrays(identity.classes).values()
    )
    per_key = {"logits": logits + 4}
    for layer, hint in hints.items():
        per_key[f"hint.{layer}"] = int(np.prod(hint.shape)) * np.dtype(hint.dtype).itemsize + 4
    place = folder
    while not place.exists():
        place = place.parent if place.parent != place else Path(".")
    return Estimate(
        keys=identity.dataset.rows * views,
        bytes_per_key=per_key,
        existing=sum(path.stat().st_size for path in folder.rglob("*.h5")) if folder.exists() else 0,
        free=shutil.disk_usage(place).free,
        keys_per_second=_speed(forward, viewed, identity.teacher.numerics.batch) if timed else 0.0,
    )


def refuse_too_large(guess: Estimate, folder: Path) -> None:
    """Errors: ``CacheError`` where what is still to be written doesn't fit on the disk."""
    needed = guess.total - guess.existing
    if needed > guess.free:
        raise CacheError(
            f"{folder} needs {size(needed)} more and there are {size(guess.free)} free: fewer --views or hints, "
            "a smaller --codec, or another --out"
        )


def _speed(forward: Forward, viewed: ViewedDataset, batch: int) -> float:
    rows = np.arange(min(batch, len(viewed)))
    pixels = viewed.batch(rows, 0).to(forward.device)
    forward(pixels)
    forward.wait()
    began = time.perf_counter()
    for _ in range(TIMED_BATCHES):
        forward(pixels)
    forward.wait()
    return TIMED_BATCHES * len(rows) / (time.perf_counter() - began)
