"""What reading takes beside time: memory that no file backs, open files, and the time to open a large cache."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.made import make_cache
from benchmarks.measure import Result, arguments, paired, row, timed
from softcache.cache.reader import Cache
from softcache.cache.schema import LOGITS, shard_name
from softcache.stream.windows import WINDOW_BYTES

READ = """
import resource, sys
import numpy as np
from softcache.cache.blocks import BlockReader
from softcache.cache.reader import Cache
from softcache.cache.schema import LOGITS
from softcache.stream.windows import pick_windows

folder, way, files = sys.argv[1:]
if int(files):
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(files), int(files)))

def anonymous():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("RssAnon")) / 1024

cache = Cache(folder)  # imports the codec, and torch with it
before = most = anonymous()
if way == "blocks":
    windows, _ = pick_windows([(cache, LOGITS)], "block", 0)
    order = windows.permutation(np.random.default_rng(0), np.arange(cache.rows))
    gather = BlockReader(cache, LOGITS, 0, order, windows.block_rows, windows.window).gather
else:
    order, column = np.random.default_rng(0).permutation(cache.rows), cache.column(LOGITS)
    gather = lambda rows: column.gather(0, rows)
for first in range(0, len(order), 256):
    gather(order[first : first + 256])
    most = max(most, anonymous())
print(most - before)
"""


def main() -> Result:
    options = arguments(__doc__)
    limit = 2 * WINDOW_BYTES
    rows = 8192 if options.tiny else 10 * limit // 2004
    views, shards, many = (3, 4, 40) if options.tiny else (300, 40, 1250)
    folder = Path(tempfile.mkdtemp(prefix="softcache-bounds-", dir="."))
    lines = []
    try:
        large = make_cache(folder / "large", rows=rows, classes=1000, shard_rows=32768)
        what = f"a view of {rows * 2004 / 2**20:,.0f} MiB, ten times what blocks may hold"
        for way in ("mapped", "blocks"):
            grown = [_child(large.folder, way, 0) for _ in range(options.repetitions)]
            lines.append(row(f"RssAnon, {way}: MiB grown by reading {what}", grown, "≤ 200"))
        shutil.rmtree(large.folder)
        split = make_cache(folder / "split", rows=64 * many, classes=10, shard_rows=64)
        grown = [_child(split.folder, "mapped", 256) for _ in range(options.repetitions)]
        lines.append(row(f"RssAnon, mapped: MiB grown by {many:,} shards under `ulimit -n 256`", grown, "≤ 200"))
        wide = make_cache(folder / "wide", rows=1024 * shards, classes=10, shard_rows=1024)
        _pretend(wide, views)
        taken = paired(
            {"open": timed(lambda: _open(wide.folder)), "first": timed(lambda: _first_batch(wide.folder))},
            options.repetitions,
        )
        lines.append(row(f"seconds to open a cache of {views} views × {shards} shards", taken["open"], "≤ 1"))
        lines.append(row("seconds to open it and gather a first batch", taken["first"]))
    finally:
        shutil.rmtree(folder)
    note = "All but the first view's shards are names alone, which is all that is looked at before they are needed."
    return Result("bounds", "Memory, open files, opening", lines, unit="value", notes=[note])


def _child(folder: Path, way: str, files: int) -> float:
    command = [sys.executable, "-c", READ, str(folder), way, str(files)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _pretend(cache: Cache, views: int) -> None:
    """Names of the shards of more views."""
    manifest = cache.manifest
    manifest.state.views = views
    manifest.save(cache.folder)
    for view in range(1, views):
        (cache.folder / f"view-{view:04d}").mkdir()
        for number in range(manifest.shards(LOGITS)):
            (cache.folder / shard_name(view, LOGITS, number)).touch()


def _open(folder: Path) -> Cache:
    cache = Cache(folder)
    assert len(cache.complete_views()) == cache.views
    return cache


def _first_batch(folder: Path) -> None:
    _open(folder).column(LOGITS).gather(0, np.arange(256))


if __name__ == "__main__":
    main().show()
