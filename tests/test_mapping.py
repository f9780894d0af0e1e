"""Maps of shards: what they read, what they keep open, what they take, and what they refuse."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from harness_cache import make_cache

from softcache.cache.blocks import BlockReader
from softcache.cache.mapping import can_join, map_rows, take_rows
from softcache.cache.reader import Cache
from softcache.cache.shard import Extent
from softcache.errors import IntegrityError

LINUX = sys.platform == "linux"


def write_parts(folder: Path, rows: list[int], width: int, offset: int) -> tuple[list[tuple[Path, Extent]], np.ndarray]:
    """Files of consecutive rows of int16, each beginning at ``offset`` of its file, and the whole array."""
    whole = np.arange(sum(rows) * width, dtype="<i2").reshape(-1, width)
    parts, at = [], 0
    for number, count in enumerate(rows):
        path = folder / f"{number}.bin"
        path.write_bytes(b"\xff" * offset + whole[at : at + count].tobytes())
        parts.append((path, Extent(offset, np.dtype("<i2"), (count, width), 0)))
        at += count
    return parts, whole


@pytest.mark.parametrize(
    ("rows", "width", "offset", "joined"),
    [
        ([2048, 2048, 100], 2, 4096, True),  # 8192 bytes a part: whole pages
        ([1024, 1024, 1024], 3, 4096, False),  # 6144 bytes a part: one and a half
        ([2048, 100], 2, 24, False),  # doesn't begin on a page
        ([100], 3, 40, False),
        ([2048, 2048, 0], 2, 4096, True),
    ],
)
def test_mapped_rows_are_the_files_rows(tmp_path: Path, rows: list[int], width: int, offset: int, joined: bool) -> None:
    parts, whole = write_parts(tmp_path, rows, width, offset)
    maps = map_rows(parts)
    assert can_join(parts) == (joined and LINUX) or len(parts) == 1
    assert len(maps) == (1 if joined and LINUX else len(parts))
    assert np.array_equal(np.concatenate(maps), whole)
    wanted = np.random.default_rng(0).integers(0, len(whole), 500)
    out = np.empty((500, width), "<i2")
    take_rows(maps, rows[0], wanted, out)
    assert np.array_equal(out, whole[wanted])
    with pytest.raises(ValueError, match="read-only"):
        maps[0][0] = 1


def test_taking_nothing_and_taking_one_row_twice(tmp_path: Path) -> None:
    parts, whole = write_parts(tmp_path, [64, 64], 3, 8)
    maps = map_rows(parts)
    out = np.empty((4, 3), "<i2")
    take_rows(maps, 64, np.array([127, 0, 127, 64]), out)
    assert np.array_equal(out, whole[[127, 0, 127, 64]])
    take_rows(maps, 64, np.array([], np.int64), np.empty((0, 3), "<i2"))


@pytest.mark.parametrize(("width", "offset"), [(2, 4096), (3, 24)])
def test_a_file_that_ends_early_is_refused_before_it_is_read(tmp_path: Path, width: int, offset: int) -> None:
    parts, _ = write_parts(tmp_path, [2048, 2048], width, offset)
    os.truncate(parts[1][0], offset + 2048)
    with pytest.raises(IntegrityError, match="has been truncated"):
        map_rows(parts)
    parts[1][0].unlink()
    with pytest.raises(IntegrityError, match="can't be mapped"):
        map_rows(parts)


@pytest.mark.skipif(not LINUX, reason="reads /proc")
@pytest.mark.parametrize(("width", "offset"), [(2, 4096), (3, 24)])
def test_files_are_closed_at_once_and_memory_is_given_back(tmp_path: Path, width: int, offset: int) -> None:
    parts, whole = write_parts(tmp_path, [2048] * 8, width, offset)
    descriptors = len(os.listdir("/proc/self/fd"))
    maps = map_rows(parts)
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert mapped_files(tmp_path) == 8
    rows = maps[0][:10]  # a view keeps what it looks at
    del maps
    gc.collect()
    assert mapped_files(tmp_path) >= 1
    assert np.array_equal(rows, whole[:10])
    del rows
    gc.collect()
    assert mapped_files(tmp_path) == 0


def mapped_files(folder: Path) -> int:
    return sum(str(folder) in line for line in Path("/proc/self/maps").read_text().splitlines())


def test_shards_are_opened_when_they_are_first_needed(tmp_path: Path) -> None:
    cache, logits = make_cache(tmp_path / "cache", rows=300, shard_rows=64, views=3)
    for number in range(5):
        cache.shard_path(1, "logits", number).write_bytes(b"nothing")
    cache.shard_path(2, "logits", 4).write_bytes(b"nothing")
    again = Cache(cache.folder)
    assert again.complete_views() == [0, 1, 2]
    reader = again.column("logits")
    rows = np.array([299, 0, 7])
    assert np.array_equal(reader.gather(0, rows)["logits/values"].astype(np.float32), logits[0][rows])
    with pytest.raises(IntegrityError, match=r"view-0001.logits-00000"):
        reader.gather(1, rows)
    # blocks open one shard at a time
    blocks = BlockReader(again, "logits", 2, np.arange(200), 64, 1)
    assert np.array_equal(blocks.gather(np.arange(64))["logits/values"].astype(np.float32), logits[2][:64])
    with pytest.raises(IntegrityError, match=r"view-0002.logits-00004"):
        BlockReader(again, "logits", 2, rows, 64, 1).gather(rows)


@pytest.mark.parametrize("block_rows", [16, 64, 128])
def test_blocks_give_the_rows_in_any_order_within_windows(tmp_path: Path, block_rows: int) -> None:
    cache, logits = make_cache(tmp_path / "cache", rows=1000, shard_rows=64, views=1)
    rng = np.random.default_rng(1)
    # three windows of three blocks, twice over: blocks come back after they have been dropped
    window = 3 * block_rows
    order = np.concatenate([first + rng.permutation(min(window, 1000 - first)) for first in range(0, 1000, window)] * 2)
    reader = BlockReader(cache, "logits", 0, order, block_rows, 3)
    assert reader.nbytes <= (2 * 3 * block_rows) * cache.row_bytes("logits")
    for first in range(0, len(order), 50):
        rows = order[first : first + 50]
        assert np.array_equal(reader.gather(rows)["logits/values"].astype(np.float32), logits[0][rows])


CHILD = """
import resource, sys
import numpy as np
from softcache.cache.blocks import BlockReader
from softcache.cache.reader import Cache
from softcache.training.windows import Windows

folder, way, descriptors = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_NOFILE, (int(descriptors), int(descriptors)))

def anonymous():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("RssAnon")) / 1024

cache = Cache(folder)
windows = Windows(128, 4)
before = most = anonymous()
for epoch in range(2):
    view = epoch % cache.views
    order = windows.permutation(np.random.default_rng(epoch), np.arange(cache.rows))
    if way == "blocks":
        reader = BlockReader(cache, "logits", view, order, windows.block_rows, windows.window)
        gather = reader.gather
    else:
        column = cache.column("logits")
        gather = lambda rows: column.gather(view, rows)
    for first in range(0, len(order), 256):
        rows = order[first : first + 256]
        found = gather(rows)["logits/values"]
        assert (found[:, 0] == (rows % 2048).astype(np.float16)).all()
        most = max(most, anonymous())
print(most - before)
"""


@pytest.fixture(scope="module")
def many_shards(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """20 MB of logits in 160 shards."""
    logits = np.zeros((10_240, 1000), np.float32)
    logits[:, 0] = np.arange(10_240) % 2048
    folder = tmp_path_factory.mktemp("many") / "cache"
    return make_cache(folder, rows=10_240, classes=1000, shard_rows=64, views=1, logits=logits)[0]


@pytest.mark.skipif(not LINUX, reason="reads /proc")
@pytest.mark.parametrize("way", ["mapped", "blocks"])
def test_memory_and_open_files_are_bounded_whatever_the_size(many_shards: Cache, way: str) -> None:
    """Read by a process that may open 40 files; blocks hold 2 × 4 × 128 rows, a tenth of the cache."""
    arguments = [sys.executable, "-c", CHILD, str(many_shards.folder), way, "40"]
    run = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 6, "MiB of memory that no file backs"
