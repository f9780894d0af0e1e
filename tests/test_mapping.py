"""Maps of shards: what they read, what they keep open, what they take, and what they refuse."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from harness_cache import make_cache

from softcache.cache import mapping
from softcache.cache.blocks import BlockReader
from softcache.cache.mapping import Rows, map_shards
from softcache.cache.reader import Cache
from softcache.cache.schema import ColumnRecord
from softcache.cache.shard import Extent, Opened, opened
from softcache.errors import IntegrityError, UsageError
from softcache.stream.windows import WINDOW_BYTES, Windows, pick_windows

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


def map_rows(files: list[tuple[Path, Extent]], *, join: bool = True) -> Rows:
    @contextlib.contextmanager
    def opening(path: Path, extent: Extent) -> Iterator[Opened]:
        with opened(path) as (fd, _):
            yield Opened(path, fd, {"rows": extent})

    return map_shards([opening(path, extent) for path, extent in files], join=join)["rows"]


@pytest.mark.parametrize(
    ("rows", "width", "offset", "joined"),
    [
        ([2048, 2048, 100], 2, 4096, True),  # 8192 bytes a part: whole pages
        ([1024, 1024, 1024], 3, 8192, True),  # 6144 bytes a part: one and a half
        ([600_000, 600_000, 7], 3, 4096, True),  # 3.4 MiB a part: more than a huge page, and no multiple of it
        ([2048, 2048, 0], 2, 4096, True),
        ([100], 3, 40, True),
        ([2048, 100], 2, 24, False),  # doesn't begin on a page
    ],
)
@pytest.mark.parametrize("join", [True, False])
def test_mapped_rows_are_the_files_rows(
    tmp_path: Path, rows: list[int], width: int, offset: int, joined: bool, join: bool
) -> None:
    files, whole = write_parts(tmp_path, rows, width, offset)
    mapped = map_rows(files, join=join)
    assert (mapped._joined is not None) == ((joined and join and LINUX) or len(rows) == 1)
    assert np.array_equal(np.concatenate(mapped.parts), whole)
    wanted = np.r_[len(whole) - 1, 0, 0, np.random.default_rng(0).integers(0, len(whole), 500)]
    out = np.empty((len(wanted), width), "<i2")
    mapped.take(wanted, out)
    assert np.array_equal(out, whole[wanted])
    mapped.take(np.array([], np.int64), np.empty((0, width), "<i2"))
    with pytest.raises(ValueError, match="read-only"):
        mapped.parts[0][0] = 1


@pytest.mark.parametrize("offset", [4096, 24])
def test_a_file_that_ends_early_is_refused_before_it_is_read(tmp_path: Path, offset: int) -> None:
    files, _ = write_parts(tmp_path, [2048, 2048], 2, offset)
    os.truncate(files[1][0], offset + 2048)
    with pytest.raises(IntegrityError, match="has been truncated"):
        map_rows(files)
    files[1][0].unlink()
    with pytest.raises(IntegrityError, match="is missing"):
        map_rows(files)


@pytest.mark.skipif(not LINUX, reason="reads /proc")
@pytest.mark.parametrize("join", [True, False])
def test_files_are_closed_at_once_and_memory_is_given_back(tmp_path: Path, join: bool) -> None:
    files, whole = write_parts(tmp_path, [2048] * 8, 2, 4096)
    descriptors, before = len(os.listdir("/proc/self/fd")), reserved()
    mapped = map_rows(files, join=join)
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert mapped_files(tmp_path) == 8
    rows = mapped.parts[0][:10]  # a part keeps what it looks at
    del mapped
    gc.collect()
    assert mapped_files(tmp_path) >= 1
    assert np.array_equal(rows, whole[:10])
    del rows
    gc.collect()
    assert mapped_files(tmp_path) == 0
    assert reserved() < before + 2**20


@pytest.mark.skipif(not LINUX, reason="setrlimit of addresses")
def test_where_addresses_are_scarce_each_file_gets_a_map_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, whole = write_parts(tmp_path, [2048, 2048], 2, 4096)
    monkeypatch.setattr(mapping, "_reserve", lambda length: None)
    mapped = map_rows(files)
    assert mapped._joined is None
    assert np.array_equal(np.concatenate(mapped.parts), whole)


def reserved() -> int:
    """Bytes of addresses that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * 4096


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
    assert np.array_equal(reader.gather(0, rows)["values"].astype(np.float32), logits[0][rows])
    with pytest.raises(IntegrityError, match=r"view-0001.logits-00000"):
        reader.gather(1, rows)
    # blocks open one shard at a time
    blocks = BlockReader(again, "logits", 2, np.arange(200), 64, 1)
    assert np.array_equal(blocks.gather(np.arange(64))["values"].astype(np.float32), logits[2][:64])
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
    assert reader.nbytes <= (2 * 3 * block_rows) * cache.layout("logits").row_bytes
    for first in range(0, len(order), 50):
        rows = order[first : first + 50]
        assert np.array_equal(reader.gather(rows)["values"].astype(np.float32), logits[0][rows])


@pytest.mark.timeout(60)
def test_a_batch_may_be_larger_than_all_windows(tmp_path: Path) -> None:
    cache, logits = make_cache(tmp_path / "cache", rows=1000, shard_rows=64, views=1)
    for seed, (block_rows, window, batch) in enumerate([(1, 2, 256), (4, 2, 999), (16, 3, 100), (64, 2, 1000)]):
        order = Windows(block_rows, window).permutation(np.random.default_rng(seed), np.arange(0, 1000, 1 + seed))
        reader = BlockReader(cache, "logits", 0, order, block_rows, window)
        for first in range(0, len(order), batch):
            rows = order[first : first + batch]
            assert np.array_equal(reader.gather(rows)["values"].astype(np.float32), logits[0][rows])


def test_the_thread_that_reads_ahead_ends_with_its_reader(tmp_path: Path) -> None:
    cache, _ = make_cache(tmp_path / "cache", rows=1000, shard_rows=64, views=1)
    order = np.arange(1000)
    reader = BlockReader(cache, "logits", 0, order, 32, 2)
    reader.gather(order[:20])
    thread = reader._thread
    assert thread.is_alive()  # its blocks are full, and it waits for them to be used
    del reader
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize("size", [1, 100, 100_000, 10_000_000])
def test_blocks_stay_within_their_bytes_however_large_a_row_is(tmp_path: Path, size: int) -> None:
    hint = ColumnRecord("values", [size], "fp16", 1)
    cache, _ = make_cache(tmp_path / "cache", rows=4, shard_rows=64, views=1, hints={"fc": hint}, written=False)
    windows, _ = pick_windows([(cache, "hint.fc")], "block", 0)
    assert windows is not None
    row = cache.layout("hint.fc").row_bytes
    assert windows.block_rows * windows.window * row <= max(WINDOW_BYTES, 2 * row)


def test_an_order_that_leaves_its_windows_is_refused(tmp_path: Path) -> None:
    cache, _ = make_cache(tmp_path / "cache", rows=1000, shard_rows=64, views=1)
    order = np.random.default_rng(0).permutation(1000)
    with pytest.raises(AssertionError, match="within its windows"):
        BlockReader(cache, "logits", 0, order, 32, 2)
    with pytest.raises(AssertionError, match="order given"):
        BlockReader(cache, "logits", 0, np.arange(1000), 32, 2).gather(np.arange(20) + 1)


CHILD = """
import resource, sys
import numpy as np
from softcache.cache.blocks import BlockReader
from softcache.cache.reader import Cache
from softcache.cache.schema import ColumnRecord
from softcache.stream.windows import Windows

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
        found = gather(rows)["values"]
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


@pytest.mark.parametrize("join", [True, False])
def test_what_was_checked_is_what_is_mapped(tmp_path: Path, join: bool) -> None:
    """Another file takes a shard's name, shorter or forged, between the check and the map."""
    cache, logits = make_cache(tmp_path / "cache", rows=300, shard_rows=64, views=1)

    @contextlib.contextmanager
    def replaced(number: int) -> Iterator[Opened]:
        with cache.shard(0, "logits", number) as file:
            (tmp_path / "forged").write_bytes(b"short")
            os.replace(tmp_path / "forged", file.path)
            yield file

    mapped = map_shards([replaced(number) for number in range(5)], join=join)
    held = {name: np.concatenate(rows.parts) for name, rows in mapped.items()}
    assert np.array_equal(cache.layout("logits").decode(held).numpy(), logits[0])
    with pytest.raises(IntegrityError, match=r"logits-00000\.h5"):
        cache.column("logits").map(0)


def test_blocks_of_a_file_that_took_a_shards_name_are_checked_before_they_are_read(tmp_path: Path) -> None:
    cache, logits = make_cache(tmp_path / "cache", rows=2048, shard_rows=2048, views=1)
    other, _ = make_cache(tmp_path / "other", rows=2048, shard_rows=2048, views=1, classes=10, codec="fp32")
    order = np.arange(2048)
    shard = cache.shard_path(0, "logits", 0)
    reader = BlockReader(cache, "logits", 0, order, 16, 2)
    layout = cache.layout("logits")
    assert np.array_equal(layout.decode(reader.gather(order[:16])).numpy(), logits[0][:16])
    same = tmp_path / "same"
    same.write_bytes(shard.read_bytes())
    os.replace(same, shard)  # as dump after a repair: the same bytes
    for first in range(16, 1024, 16):
        rows = order[first : first + 16]
        assert np.array_equal(layout.decode(reader.gather(rows)).numpy(), logits[0][rows])
    os.replace(other.shard_path(0, "logits", 0), shard)

    def read_on() -> None:
        for first in range(1024, 2048, 16):
            reader.gather(order[first : first + 16])

    with pytest.raises(IntegrityError, match=r"logits-00000\.h5 has column_sha256"):
        read_on()


def test_rows_of_any_integers_may_be_asked_for(tmp_path: Path) -> None:
    cache, logits = make_cache(tmp_path / "cache", rows=300, shard_rows=64, views=2)
    reader, wanted = cache.column("logits"), [299, 0, 7, 64, 63, 7]
    for rows in (wanted, *(np.array(wanted, dtype) for dtype in ("<i2", "<i4", "<u4", "<i8", "<u8", ">i8", ">i4"))):
        assert np.array_equal(reader.decode(reader.gather(1, rows)).numpy(), logits[1][wanted])
    backwards = np.arange(600, dtype=np.int64)[598::-2] // 2  # neither contiguous nor in order
    assert np.array_equal(reader.decode(reader.gather(1, backwards)).numpy(), logits[1][::-1])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([300], r"row 300 is out of range: the cache has 300 rows"),
        ([5, -1], r"row -1 is out of range"),
        (np.array([3, 2**40]), r"row 1099511627776 is out of range"),
        (np.array([2**64 - 2], np.uint64), r"row 18446744073709551614 is out of range"),
        ([0.0, 1.0], r"rows are float64, not integers"),
        (np.array([True, False]), r"rows are bool, not integers"),
        (np.zeros((2, 2), np.int64), r"rows have shape \(2, 2\), not \(B,\)"),
        (["a"], r"not integers"),
    ],
)
@pytest.mark.parametrize("shard_rows", [64, 512])
def test_rows_that_a_cache_does_not_have_are_refused(tmp_path: Path, rows, message: str, shard_rows: int) -> None:
    """Not by an assert: beyond the last row there may be addresses that nothing is mapped to."""
    cache, _ = make_cache(tmp_path / "cache", rows=300, shard_rows=shard_rows, views=1)
    with pytest.raises(UsageError, match=message):
        cache.column("logits").gather(0, rows)
    assert len(cache.column("logits").gather(0, np.array([], np.int64))["digest"]) == 0


def test_a_cache_decodes_what_it_gives(tmp_path: Path) -> None:
    cache, logits = make_cache(
        tmp_path / "cache", rows=20, views=1, hints={"fc": ColumnRecord("values", [3], "fp16", 64)}
    )
    column, hint = cache.column("logits"), cache.column("hint.fc")
    arrays, held = column.gather(0, np.arange(20)), hint.gather(0, np.arange(20))
    found = column.decode(arrays)
    assert found.dtype == torch.float32
    assert np.array_equal(found.numpy(), logits[0])
    assert set(arrays) == {"digest", "values"}, "nothing is taken out of them"
    assert torch.equal(column.decode({name: torch.from_numpy(array) for name, array in arrays.items()}), found)
    mapped = column.map(0)["values"].parts[0]  # read-only
    assert torch.equal(column.decode({"values": mapped}), found)
    values = hint.decode(held)
    assert values.dtype == torch.float32
    assert np.array_equal(values.numpy(), held["values"].astype(np.float32))
    with pytest.raises(UsageError, match=r"the column 'logits' has values \(10,\) of each key, not values \(3,\)"):
        column.decode(held)
    with pytest.raises(UsageError, match="not nothing"):
        column.decode({"digest": held["digest"]})
