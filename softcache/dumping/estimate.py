"""How much space and time a dump will take: bytes are computed, time is measured on a few batches."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from softcache.cache.column import Column
from softcache.cache.reader import Cache
from softcache.cache.schema import Grid, Identity
from softcache.cache.sizes import shards_bytes
from softcache.console import duration, rate, size
from softcache.dumping.forward import Forward
from softcache.dumping.grid import rows_together
from softcache.dumping.smaller import key_bytes
from softcache.errors import CacheError
from softcache.ragged import Int64
from softcache.stream.inputs import pick_workers
from softcache.views._open import Viewed

TIMED_BATCHES = 3


@dataclass(frozen=True)
class Estimate:
    """Counts of keys and bytes, and speeds in keys per second.

    ``keys``: all keys of the cache; ``missing``: those still to be computed. ``bytes_per_key``: column → bytes.
    ``total``: bytes of all shards as files; ``existing``: of those that are there; ``needed``: of the shards still to
    be written; ``free``: free on the disk, None of an object store, whose room nobody knows. Speeds are those of making
    pixels in one process, of the teacher, and of both together with ``workers`` processes; 0 where nothing was timed.
    ``at_most``: whether a column is compressed, so that ``total`` and ``needed`` are the most that it can be, and
    ``bytes_per_key`` what is compressed.
    """

    keys: int
    missing: int
    bytes_per_key: dict[str, int]
    total: int
    existing: int
    needed: int
    free: int | None
    pixels_per_second: float = 0.0
    teacher_per_second: float = 0.0
    keys_per_second: float = 0.0
    workers: int = 0
    at_most: bool = False

    @property
    def seconds(self) -> float:
        """Seconds that the missing keys will take; 0 where nothing was timed."""
        return self.missing / self.keys_per_second if self.keys_per_second else 0.0

    def describe(self) -> list[tuple[str, str]]:
        """Rows of a table."""
        rows = [("keys", f"{self.keys:,}, {self.missing:,} of them missing")]
        most = "at most " if self.at_most else ""
        rows += [(f"{column} per key", size(count)) for column, count in self.bytes_per_key.items()]
        rows += [
            ("all shards", f"{most}{size(self.total)}"),
            ("already there", size(self.existing)),
            ("to write", f"{most}{size(self.needed)}"),
        ]
        if self.free is not None:
            rows.append(("free", size(self.free)))
        if self.keys_per_second:
            by = f"{self.workers} worker processes" if self.workers else "this process"
            rows.append(
                (
                    "time",
                    f"{duration(self.seconds)} at {rate(self.keys_per_second, 'keys')} "
                    f"(teacher {rate(self.teacher_per_second)}, pixels {rate(self.pixels_per_second)}, by {by})",
                )
            )
        return rows

    def to_json(self) -> dict[str, object]:
        return {**dataclasses.asdict(self), "seconds": self.seconds}


def estimate(
    identity: Identity,
    columns: Sequence[Column],
    views: int,
    folder: Path,
    existing: Cache | None,
    lengths: Mapping[str, Int64],
) -> Estimate:
    """An estimate of space, without speeds. Writes nothing and makes no folder. ``lengths``: (N,) of each input whose
    rows have lengths of their own."""
    rows, block_rows = identity.dataset.rows, identity.grid.block_rows
    held = {column.name: shards_bytes(column, rows, lengths) for column in columns}
    total = views * sum(map(sum, held.values()))
    known = [column for column in held if existing and column in existing.manifest.columns]
    absent = set(existing.missing(known, views)) if existing else set()
    needed, missing = 0, set()
    for column in columns:
        for view in range(views):
            for number, count in enumerate(held[column.name]):
                if column.name in known and (view, column.name, number) not in absent:
                    continue
                needed += count
                missing.add((view, number * column.shard_rows // block_rows))
    keys = sum(min(block_rows, rows - block * block_rows) for _, block in missing)
    there = sum(path.stat().st_size for path in folder.rglob("*.h5")) if folder.exists() else 0
    per_key = {column.name: key_bytes(column, rows, places_together(column, rows, lengths)) for column in columns}
    free = shutil.disk_usage(existing_place(folder)).free
    at_most = any(column.compress is not None for column in columns)
    return Estimate(rows * views, keys, per_key, total, there, needed, free, at_most=at_most)


def existing_place(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return place


def places_together(column: Column, rows: int, lengths: Mapping[str, Int64]) -> int:
    """How many places all ``rows`` have together in a ragged column; 0 in any other."""
    return int(column.places(rows, lengths).sum()) if column.ragged else 0


def timed(guess: Estimate, forward: Forward, viewed: Viewed, grid: Grid, workers: int) -> Estimate:
    """The estimate with speeds, measured on a few batches. Worker processes share the making of pixels."""
    making, running = speeds(forward, viewed, grid)
    count = pick_workers(viewed, workers)
    both = min(running, making * count) if count else 1 / (1 / running + 1 / making)
    return dataclasses.replace(
        guess, pixels_per_second=making, teacher_per_second=running, keys_per_second=both, workers=count
    )


def speeds(forward: Forward, viewed: Viewed, grid: Grid) -> tuple[float, float]:
    """Keys per second of making inputs in one process, and of the teacher, measured on a few batches."""
    batches = rows_together(grid, 0, min(grid.block_rows, len(viewed)), viewed.lengths())
    rows = batches[0 if grid.bucket is None else len(batches) // 2]
    viewed.batch(rows, 0)  # what is computed once (resized images) is not part of a batch's time
    began = time.perf_counter()
    for view in range(TIMED_BATCHES):
        inputs = viewed.batch(rows, view)
    making = TIMED_BATCHES * len(rows) / (time.perf_counter() - began)
    on_device = inputs.to(forward.device)
    forward(on_device)
    forward.wait()
    began = time.perf_counter()
    for _ in range(TIMED_BATCHES):
        forward(on_device)
    forward.wait()
    return making, TIMED_BATCHES * len(rows) / (time.perf_counter() - began)


def refuse_too_large(guess: Estimate, folder: Path, elsewhere: str = "another --out") -> None:
    """Errors: ``CacheError`` where what is still to be written doesn't fit on the disk. ``elsewhere``: how to write to
    another one. What is compressed may fit."""
    if guess.free is not None and guess.needed > guess.free and not guess.at_most:
        raise CacheError(
            f"{folder} needs {size(guess.needed)} more and there are {size(guess.free)} free: fewer --views or hints, "
            f"a smaller --codec, or {elsewhere}"
        )
