"""Compressed shards: what is written comes back, HDF5 with a plug-in reads it too, and every reader gives the same."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from harness_cache import make_cache, make_ragged, write_shard
from hypothesis import given, settings
from hypothesis import strategies as st

from softcache.cache.attributes import shard_attributes
from softcache.cache.blocks import BlockReader
from softcache.cache.checksum import check_file
from softcache.cache.chunk_frames import Chunking
from softcache.cache.column import Column
from softcache.cache.compression import (
    MAX_CHUNK_BYTES,
    MIN_CHUNK_BYTES,
    parse_compression,
    recorded_chunking,
    settled_compression,
)
from softcache.cache.description import describe
from softcache.cache.reader import Cache
from softcache.cache.shard import open_shard, read_array, read_rows
from softcache.cache.sizes import shards_bytes
from softcache.cache.virtual import write_virtual
from softcache.codecs._open import open_codec
from softcache.errors import MissingExtraError, UsageError
from softcache.extras import install_command
from softcache.stages.verify import verify
from softcache.stream.windows import Windows

pytest.importorskip("zstandard")

HDF5PLUGIN = importlib.util.find_spec("hdf5plugin") is not None
ATTRIBUTES: dict[str, int | str] = {"format": "softcache"}
DTYPES = ["<f2", "<f4", "<u1", "<u2", "<i2"]
SMALL = Chunking(1, True, 1)


def some_values(rng: np.random.Generator, dtype: str, shape: tuple[int, ...], kind: str) -> np.ndarray:
    """Bytes of all values, few values, or one value."""
    if kind == "noise":
        whole = rng.integers(0, 256, (int(np.prod(shape)) * np.dtype(dtype).itemsize,), np.uint8)
        return whole.view(dtype).reshape(shape)
    return rng.integers(0, 1 if kind == "one" else 5, shape).astype(dtype)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_array_comes_back_whatever_its_shape_and_chunks(data: Any) -> None:
    rows, tail = data.draw(st.integers(0, 70)), tuple(data.draw(st.lists(st.integers(1, 5), max_size=3)))
    dtype, kind = data.draw(st.sampled_from(DTYPES)), data.draw(st.sampled_from(["noise", "few", "one"]))
    how = Chunking(2 ** data.draw(st.integers(0, 7)), data.draw(st.booleans()), data.draw(st.sampled_from([1, 3, 19])))
    values = some_values(np.random.default_rng(data.draw(st.integers(0, 99))), dtype, (rows, *tail), kind)
    arrays = {"digest": np.arange(rows, dtype="<u4"), "values": values}
    held = {name: (array.dtype.str, array.shape) for name, array in arrays.items()}
    chunking = {"values": Chunking(how.rows, how.shuffle and values.itemsize > 1, how.level)}
    with tempfile.TemporaryDirectory() as folder:
        path, again = Path(folder) / "shard.h5", Path(folder) / "again.h5"
        write_shard(path, ATTRIBUTES, arrays, chunking)
        write_shard(again, ATTRIBUTES, arrays, chunking)
        assert path.read_bytes() == again.read_bytes()
        assert check_file(path, ATTRIBUTES, held, chunking=chunking) == []
        with open_shard(path, ATTRIBUTES, held, chunking) as file:
            assert set(file.compressed) == ({"values"} if rows else set())
            for name, array in arrays.items():
                assert read_array(file, name).tobytes() == array.tobytes()
            if rows:
                first = data.draw(st.integers(0, rows - 1))
                count = data.draw(st.integers(1, rows - first))
                out = np.empty((count, *tail), dtype)
                read_rows(file, file.compressed["values"], first, out)
                assert out.tobytes() == values[first : first + count].tobytes()


@pytest.mark.skipif(not HDF5PLUGIN, reason="hdf5plugin is for other programs")
@pytest.mark.parametrize("rows", [1, 3, 300, 1500])
def test_h5py_with_hdf5plugin_reads_it(rows: int, tmp_path: Path) -> None:
    """Chunks in HDF5's single, short and paged indices, the last one filled up."""
    import hdf5plugin  # noqa: F401

    values = np.random.default_rng(0).standard_normal((rows, 3, 2)).astype("<f4")
    arrays = {"digest": np.arange(rows, dtype="<u4"), "values": values, "codes": values.view("<u1")}
    write_shard(tmp_path / "shard.h5", ATTRIBUTES, arrays, {"values": SMALL, "codes": Chunking(64, False, 5)})
    with h5py.File(tmp_path / "shard.h5") as file:
        for name, array in arrays.items():
            assert file[name][:].tobytes() == array.tobytes()
        assert file["values"].chunks == (1, 3, 2)
        assert file["values"].shuffle
        assert not file["codes"].shuffle


@pytest.mark.skipif(not HDF5PLUGIN, reason="hdf5plugin is for other programs")
def test_the_file_over_all_shards_is_read_through_the_plug_in(tmp_path: Path) -> None:
    import hdf5plugin  # noqa: F401

    cache, expected = make_cache(tmp_path / "cache", rows=700, shard_rows=512, codec="fp32", compress="zstd")
    with h5py.File(write_virtual(cache)) as file:
        for view in range(2):
            assert file["logits/values"][view].tobytes() == expected[view].tobytes()


@pytest.mark.parametrize("codec", ["fp16", "fp32", "bf16", "int:bits=5", "topk:k=3"])
def test_a_compressed_cache_gives_the_numbers_of_an_uncompressed_one(codec: str, tmp_path: Path) -> None:
    plain, _ = make_cache(tmp_path / "plain", rows=3000, classes=40, shard_rows=1024, codec=codec)
    kept, _ = make_cache(tmp_path / "kept", rows=3000, classes=40, shard_rows=1024, codec=codec, compress="zstd")
    assert kept.manifest.state.columns["logits"].compress is not None
    assert verify(tmp_path / "kept").ok
    rng = np.random.default_rng(1)
    for opened in (Cache(tmp_path / "kept"), Cache(tmp_path / "kept", verify_reads=True)):
        for view in (0, 1, 0):
            for rows in (np.arange(3000), rng.permutation(3000), rng.integers(0, 3000, 128), np.array([2999])):
                ours, theirs = (cache.column("logits").gather(view, rows) for cache in (opened, plain))
                assert ours.keys() == theirs.keys()
                assert all(ours[name].tobytes() == theirs[name].tobytes() for name in theirs)


def test_blocks_that_are_read_ahead_are_those_of_an_uncompressed_cache(tmp_path: Path) -> None:
    """Chunks within blocks, and blocks within chunks."""
    plain, _ = make_cache(tmp_path / "plain", rows=3000, classes=100, shard_rows=1024)
    kept, _ = make_cache(tmp_path / "kept", rows=3000, classes=100, shard_rows=1024, compress="zstd:rows=128")
    for block_rows in (512, 32):
        order = Windows(block_rows, 3).permutation(np.random.default_rng(2), np.arange(3000))
        readers = [BlockReader(cache, "logits", 1, order, block_rows, 3) for cache in (plain, kept)]
        for first in range(0, 3000, 128):
            ours, theirs = (reader.gather(order[first : first + 128]) for reader in readers)
            assert all(ours[name].tobytes() == theirs[name].tobytes() for name in theirs)


@settings(deadline=None, max_examples=8)
@given(st.lists(st.sampled_from([0, 0, 1, 2, 30, 700]), min_size=1, max_size=40), st.integers(0, 9))
def test_rows_of_their_own_lengths_come_back(lengths: list[int], seed: int) -> None:
    """Empty rows, and shards that have no place at all."""
    with tempfile.TemporaryDirectory() as folder:
        plain = make_ragged(Path(folder) / "plain", lengths, shard_rows=4)
        kept = make_ragged(Path(folder) / "kept", lengths, shard_rows=4, compress="zstd")
        assert verify(kept.folder).ok
        rows = np.random.default_rng(seed).permutation(len(lengths))
        order = Windows(4, 2).permutation(np.random.default_rng(seed), np.arange(len(lengths)))
        for column in ("logits", "pairs", "states"):
            ours, theirs = (cache.column(column).gather(1, rows) for cache in (kept, plain))
            assert all(ours[name].tobytes() == theirs[name].tobytes() for name in theirs)
            ours, theirs = (BlockReader(cache, column, 0, order, 4, 2).gather(order) for cache in (kept, plain))
            assert all(ours[name].tobytes() == theirs[name].tobytes() for name in theirs)


@pytest.mark.parametrize(
    ("shape", "codec", "rows"), [((1000,), "fp16", 3000), ((100, 500), "int:bits=8", 40), ((7,), "fp32", 1)]
)
def test_a_shard_is_at_most_as_large_as_is_said_before(
    shape: tuple[int, ...], codec: str, rows: int, tmp_path: Path
) -> None:
    """Numbers that can't be compressed, in the smallest chunks that there are."""
    column = Column("x", "values", shape, open_codec(codec), 4096)
    for asked in ("zstd", "zstd:rows=16") if rows > 1 else ("zstd",):
        column = dataclasses.replace(column, compress=settled_compression(asked, column.row))
        rng, path = np.random.default_rng(0), tmp_path / "shard.h5"
        arrays = {name: some_values(rng, dtype, held, "noise") for name, (dtype, held) in column.arrays(rows).items()}
        attributes = shard_attributes("0" * 64, "x", "0" * 64, view=0, first_row=0, rows=rows)
        write_shard(path, attributes, arrays, column.chunking)
        (most,) = shards_bytes(column, rows, {})
        assert path.stat().st_size <= most < 1.02 * path.stat().st_size + 20_000


def test_memory_for_chunks_is_bounded_whatever_is_asked_for(tmp_path: Path) -> None:
    cache, expected = make_cache(
        tmp_path / "cache", rows=4096, classes=64, shard_rows=1024, views=3, codec="fp32", compress="zstd:rows=64"
    )
    column = cache.column("logits")
    memory = column._memory["values"]
    memory.limit = 5 * memory.chunk_bytes  # of 64
    rng = np.random.default_rng(0)
    for view in (0, 1, 2, 1, 0):
        rows = rng.permutation(4096)
        assert column.gather(view, rows)["values"].tobytes() == expected[view][rows].tobytes()
        assert 0 < memory.nbytes <= memory.limit
    for view in range(3):
        column.release(view)
    assert memory.nbytes == 0
    column.keep(2, most=2**20)
    assert memory.limit == 2**20 < 2 * expected[0].nbytes
    column.keep(2, most=2**30)
    assert 2 * expected[0].nbytes <= memory.limit < 2.2 * expected[0].nbytes


def test_what_nobody_chooses_is_chosen_by_a_rule() -> None:
    row = {"values": ("<f2", (1, 100))}
    settled = settled_compression("zstd", row)
    assert settled is not None
    assert settled == settled_compression(settled, row)
    how = recorded_chunking(settled, row)["values"]
    assert how.rows & (how.rows - 1) == 0
    assert settled_compression(None, row) is None
    assert recorded_chunking(None, row) == {}
    several = {"values": ("<u1", (1, 67)), "step": ("<u2", (1,)), "nothing": ("<u1", (1, 0))}
    chunking = recorded_chunking("zstd:level=1,rows=512,shuffle=byte", several)
    assert chunking == {"values": Chunking(512, False, 1), "step": Chunking(16384, True, 1)}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gzip", "unknown"),
        ("zstd:level=0", "1 to 19"),
        ("zstd:level=20", "1 to 19"),
        ("zstd:rows=100", "power of two"),
        ("zstd:shuffle=bit", "unknown"),
        ("zstd:lvl=3", "no option"),
        ("zstd:rows=1", f"too small: at least rows={2 ** (MIN_CHUNK_BYTES // 200).bit_length()}"),
        ("zstd:rows=1048576", "too large: at most rows=65536"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        settled_compression(spec, {"values": ("<f2", (1, 100))})
    assert "\n" not in str(caught.value)


def test_the_bounds_that_a_message_names_hold() -> None:
    for classes in (1, 7, 100, 1000, 10_000):
        row = {"values": ("<f2", (1, classes))}
        for asked in ("rows=1", "rows=1073741824"):
            try:
                settled_compression(f"zstd:{asked}", row)
            except UsageError as error:
                rows = int(str(error).rpartition("=")[2])
                assert MIN_CHUNK_BYTES <= rows * classes * 2 <= MAX_CHUNK_BYTES
                settled_compression(f"zstd:rows={rows}", row)


def test_without_the_package_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_cache(tmp_path / "cache", rows=20, compress="zstd")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    opened = Cache(tmp_path / "cache")
    assert describe(opened)["complete"]
    with pytest.raises(MissingExtraError, match=re.escape(install_command("compress"))):
        opened.column("logits").gather(0, np.arange(3))


def test_a_spec_is_read_as_it_is_written() -> None:
    found = parse_compression("zstd:level=3,rows=64,shuffle=none")
    assert (found.level, found.rows, found.shuffle) == (3, 64, "none")
