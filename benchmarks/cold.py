"""Reading a cache that isn't in memory: blocks in random order, against reading its files front to back.

Before each turn the files are dropped from the page cache. A plain memory map with a full shuffle is shown beside it:
it waits for the disk at every row.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.made import make_cache
from benchmarks.measure import Result, arguments, paired, ratio, timed
from softcache.cache.blocks import BlockReader
from softcache.cache.reader import Cache
from softcache.cache.schema import LOGITS
from softcache.stream.windows import pick_windows

BATCH, CLASSES = 256, 1000


def main() -> Result:
    options = arguments(__doc__)
    rows = 8192 if options.tiny else 1_000_000 if options.full else 262_144
    folder = Path(tempfile.mkdtemp(prefix="softcache-cold-", dir="."))
    try:
        cache = make_cache(folder / "cache", rows=rows, classes=CLASSES, shard_rows=max(rows // 16, 1024))
        files = [cache.shard_path(0, LOGITS, number) for number in range(cache.manifest.shards(LOGITS))]
        sides = {
            "front to back": _cold(files, lambda: _front_to_back(files)),
            "blocks": _cold(files, lambda: _blocks(cache)),
            "map": _cold(files, lambda: _mapped(cache, share=8)),
        }
        taken = paired(sides, options.repetitions)
        lines = [ratio("blocks, shuffled / files front to back", taken["front to back"], taken["blocks"], "≥ 0.9")]
        lines.append(
            ratio("map, full shuffle / files front to back", taken["front to back"], [8 * t for t in taken["map"]])
        )
        total = sum(path.stat().st_size for path in files)
        rate = total / float(np.median(taken["front to back"])) / 2**20
        note = f"Rates, so that above 1 is faster. {total / 2**20:,.0f} MiB; front to back {rate:,.0f} MiB/s."
        return Result("cold", "Reads from a cold page cache", lines, notes=[note])
    finally:
        shutil.rmtree(folder)


def _cold(files: list[Path], read: Callable[[], None]) -> Callable[[], float]:
    def run() -> float:
        for path in files:
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)
        before = _from_disk()
        seconds = timed(read)()
        if _from_disk() - before < sum(path.stat().st_size for path in files) // 20:
            print("warning: hardly anything came from the disk: the page cache can't be dropped here")
        return seconds

    return run


def _from_disk() -> int:
    """Bytes that this process has had read from a disk."""
    with open("/proc/self/io", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("read_bytes"))


def _front_to_back(files: list[Path]) -> None:
    buffer = memoryview(bytearray(2**23))
    for path in files:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def _blocks(cache: Cache) -> None:
    windows, _ = pick_windows([(cache, LOGITS)], "block", 0)
    assert windows is not None
    order = windows.permutation(np.random.default_rng(0), np.arange(cache.rows))
    reader = BlockReader(cache, LOGITS, 0, order, windows.block_rows, windows.window)
    for first in range(0, len(order), BATCH):
        reader.gather(order[first : first + BATCH])


def _mapped(cache: Cache, *, share: int) -> None:
    """Every ``share``-th of the shuffled rows, since all would take minutes."""
    order = np.random.default_rng(0).permutation(cache.rows)[: cache.rows // share]
    reader = cache.column(LOGITS)
    for first in range(0, len(order), BATCH):
        reader.gather(0, order[first : first + BATCH])


if __name__ == "__main__":
    main().show()
