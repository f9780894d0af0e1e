"""What compressing shards saves and costs: bytes, and rows a second of writing and reading on one core.

    python -m benchmarks.compression --arrays FOLDER

Each ``NAME.npy`` in the folder, (rows, …) in half or single precision, has its lines in the table: real logits or
activations, as a codec keeps them. They are written in shards as ``dump`` writes them (into the page cache), and read
in batches of 128 as ``train`` reads them: in an order of shuffled blocks, which a thread reads ahead and decompresses,
with the time that this thread takes; and in any order, each chunk decompressed when a row of it is first asked for, an
epoch each. All settings take turns; rates are of processor time. Writes the table into docs/codecs.md, but with --tiny.
"""

from __future__ import annotations

import dataclasses
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.made import make_cache_of
from benchmarks.measure import arguments, in_words, machine, paired
from softcache.cache.blocks import BlockReader
from softcache.cache.compression import parse_compression, settled_compression
from softcache.cache.reader import Cache
from softcache.cache.schema import LOGITS, ColumnRecord
from softcache.stream.windows import pick_windows

BATCH = 128
BYTES = 2**27  # of a view's numbers
CODECS = {"<f2": "fp16", "<f4": "fp32"}
SETTINGS = (None, "zstd", "zstd:level=3", "zstd:shuffle=none")
PAGE = Path(__file__).resolve().parents[1] / "docs" / "codecs.md"
BEGIN, END = "<!-- benchmarks.compression -->", "<!-- end -->"
HEAD = (
    "| numbers | rows | setting | bytes | written, rows/s | in blocks, rows/s | any order, rows/s |",
    "| --- | --- | --- | --- | --- | --- | --- |",
)


@dataclasses.dataclass(frozen=True)
class Line:
    """``ratio``: of the bytes of shards, to those that aren't compressed; rates in rows a second."""

    name: str
    shape: str
    setting: str
    ratio: float
    written: float
    blocks: float
    shuffled: float

    def __str__(self) -> str:
        rates = " | ".join(f"{rate:,.0f}" for rate in (self.written, self.blocks, self.shuffled))
        return f"| {self.name} | {self.shape} | {self.setting} | {self.ratio:.3f} | {rates} |"


def main() -> int:
    options = arguments(__doc__, repetitions=3, arrays="")
    torch.set_num_threads(1)
    lines = []
    folder = Path(tempfile.mkdtemp(prefix="softcache-compression-"))
    try:
        for path in sorted(Path(options.arrays).glob("*.npy")):
            values = np.load(path)
            for line in measured(folder, path.stem, values, 2**21 if options.tiny else BYTES, options.repetitions):
                lines.append(str(line))
                print(line, file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(folder)
    table = "\n".join([*HEAD, *lines, "", f"One core of {in_words(machine())}."])
    print(table)
    if not options.tiny:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(f"{BEGIN}\n")
        PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    return 0


def measured(folder: Path, name: str, values: np.ndarray, size: int, repetitions: int) -> list[Line]:
    """One line a setting."""
    rows = max(2 * BATCH, size // values[0].nbytes)
    shard_rows = 1 << max(0, rows.bit_length() - 3)
    kept = ColumnRecord("values", list(values.shape[1:]), CODECS[values.dtype.newbyteorder("<").str], shard_rows)
    row = {"values": (values.dtype.str, (1, *values.shape[1:]))}
    found: dict[str, list[float]] = {}
    chosen = parse_compression("zstd").settled(row)
    assert chosen.rows is not None
    settings = dict.fromkeys(settled_compression(s, row) for s in (*SETTINGS, f"zstd:rows={4 * chosen.rows}"))
    caches: dict[str, Cache] = {}
    for setting in settings:
        record = dataclasses.replace(kept, compress=setting)
        place, label = folder / f"{name}-{len(caches)}", setting or "not compressed"
        took = []
        for _ in range(repetitions):
            shutil.rmtree(place, ignore_errors=True)
            began = time.process_time()
            caches[label] = make_cache_of(place, values, record, rows=rows)
            took.append(time.process_time() - began)
        found[label] = [rows / statistics.median(took)]
    order = np.random.default_rng(0).permutation(rows)
    for read in (_in_blocks, _in_any_order):
        taken = paired({label: read(cache, order) for label, cache in caches.items()}, repetitions)
        for label, seconds in taken.items():
            found[label].append(rows / statistics.median(seconds))
    sizes = {
        label: sum(path.stat().st_size for path in cache.folder.glob("view-*/*.h5")) for label, cache in caches.items()
    }
    for cache in caches.values():
        shutil.rmtree(cache.folder)
    shape = f"{rows:,} × {'×'.join(map(str, values.shape[1:]))} {kept.codec}"
    plain = sizes["not compressed"]
    return [Line(name, shape, label, sizes[label] / plain, *rates) for label, rates in found.items()]


def _batches(order: np.ndarray) -> Sequence[np.ndarray]:
    return [order[first : first + BATCH] for first in range(0, len(order), BATCH)]


def _in_blocks(cache: Cache, order: np.ndarray) -> Callable[[], float]:
    windows, _ = pick_windows([(cache, LOGITS)], "block", 0)
    assert windows is not None
    shuffled = windows.permutation(np.random.default_rng(1), order)

    def run() -> float:
        began = time.process_time()  # of both threads: what it would take on one core
        reader = BlockReader(cache, LOGITS, 0, shuffled, windows.block_rows, windows.window)
        for batch in _batches(shuffled):
            reader.gather(batch)
        return time.process_time() - began

    return run


def _in_any_order(cache: Cache, order: np.ndarray) -> Callable[[], float]:
    def run() -> float:
        column = cache.column(LOGITS)
        column.keep(1, 2**40)
        column.map(0)
        began = time.process_time()
        for batch in _batches(order):
            column.gather(0, batch)
        return time.process_time() - began

    return run


if __name__ == "__main__":
    sys.exit(main())
