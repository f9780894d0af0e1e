"""How fast a disk is in the long run: once whatever is faster in front of it, memory or a cache of its own, is full."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from softcache.atomic import temporary_path
from softcache.errors import SoftcacheError

CHUNK = 64 << 20
SHIFT, SPAN = 4099, 1 << 20  # bytes; a prime, so that no block of a chunk is like one of the chunk before
LEAST_CHUNKS = 16
MOST_S = 60.0
STEADY = 0.1  # of the rate, by which that of the last quarter may differ from the one before
SPARED = 0.5  # of what is free, at least


@dataclass(frozen=True)
class DiskRate:
    """``bytes_per_second`` of the last quarter of ``written`` bytes; ``steady``: whether the quarter before had the
    same. ``place``: the folder they were written in."""

    bytes_per_second: float
    written: int
    steady: bool
    place: str


def measure_disk(folder: Path, most: int, *, chunk: int = CHUNK) -> DiskRate:
    """The rate at which the disk of ``folder``, which is there, takes bytes in the long run. At most ``most`` bytes are
    written and flushed, and less than half of what is free; the file has no name, so that it is gone with this process
    however that ends.

    Errors: ``SoftcacheError`` where the folder can't be written to, or the disk is too full to measure anything.
    """
    most = min(most, int(SPARED * shutil.disk_usage(folder).free))
    if most < 4 * chunk:
        raise SoftcacheError(
            f"{folder} has too little room to measure its disk, or --probe-gib is too small: "
            f"{4 * chunk >> 20} MiB are the least that are written, {most >> 20} may be"
        )
    path = temporary_path(folder / "probe")
    data = memoryview(os.urandom(chunk + SPAN))  # what a disk can't compress
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.unlink(path)
            flushed = 0

            def write() -> tuple[int, float]:
                nonlocal flushed
                first = SHIFT * flushed % SPAN  # nor share
                part, began = data[first : first + chunk], time.perf_counter()
                while part:
                    part = part[os.write(fd, part) :]
                os.fsync(fd)
                flushed += 1
                return chunk, time.perf_counter() - began

            parts, steady = until_steady(write, most // chunk)
        finally:
            os.close(fd)
    except OSError as error:
        raise SoftcacheError(f"can't measure the disk of {folder}: {error.strerror or error}") from None
    return DiskRate(_rate(parts[-quarter(parts) :]), sum(count for count, _ in parts), steady, str(folder))


def until_steady(
    write: Callable[[], tuple[int, float]], most: int, *, least: int = LEAST_CHUNKS, most_s: float = MOST_S
) -> tuple[list[tuple[int, float]], bool]:
    """Calls ``write``, which says how many bytes it wrote in how many seconds, until the rate no longer changes; at
    most ``most`` times, or until ``most_s`` seconds were spent. Returns what it said, and whether the rate was steady
    then."""
    parts: list[tuple[int, float]] = []
    while len(parts) < most and sum(seconds for _, seconds in parts) < most_s:
        parts.append(write())
        if len(parts) >= least and _steady(parts):
            return parts, True
    return parts, len(parts) >= 4 and _steady(parts)


def quarter(parts: Sequence[tuple[int, float]]) -> int:
    """How many of these are a quarter of them, at least one."""
    return max(1, len(parts) // 4)


def _steady(parts: Sequence[tuple[int, float]]) -> bool:
    count = quarter(parts)
    last, before = _rate(parts[-count:]), _rate(parts[-2 * count : -count])
    return abs(last - before) <= STEADY * before


def _rate(parts: Sequence[tuple[int, float]]) -> float:
    return sum(count for count, _ in parts) / max(sum(seconds for _, seconds in parts), 1e-9)
