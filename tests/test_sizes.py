"""Sizes of a cache's files: what is computed before they are there is what is then written, to the byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from harness_cache import kept_nothing, make_cache, make_ragged
from hypothesis import given, settings
from hypothesis import strategies as st

from softcache.cache.attributes import rows_attributes
from softcache.cache.reader import Cache
from softcache.cache.schema import ColumnRecord
from softcache.cache.shard import file_bytes, write_temporary
from softcache.cache.sizes import constants_bytes, rows_bytes, samples_bytes, shards_bytes
from softcache.cache.virtual import virtual_bytes, write_virtual

NAMES = st.text("abcdefgh_", min_size=1, max_size=30)
SPECS = st.tuples(
    st.sampled_from(["<f2", "<f4", "<u2", "|u1", "<i8", "S17"]),
    st.lists(st.integers(0, 70), min_size=1, max_size=3).map(tuple),
)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(NAMES, SPECS, min_size=1, max_size=12), st.dictionaries(NAMES, NAMES | st.integers(0, 9)))
def test_a_file_has_the_bytes_that_are_computed(tmp_path_factory: pytest.TempPathFactory, specs, attributes) -> None:
    path = tmp_path_factory.mktemp("sizes") / "file.h5"
    part = write_temporary(path, attributes, {name: np.zeros(shape, dtype) for name, (dtype, shape) in specs.items()})
    assert file_bytes(attributes, specs) == part.stat().st_size


def test_all_files_of_a_cache(tmp_path: Path) -> None:
    hints = {"layer": ColumnRecord("values", [3, 5, 5], "int8", 32), "fc:in": ColumnRecord("values", [7], "fp32", 64)}
    cache, _ = make_cache(tmp_path / "cache", rows=300, shard_rows=64, views=3, hints=hints)
    write_virtual(cache)
    columns = [cache.layout(name) for name in cache.manifest.columns]
    for column in columns:
        expected = shards_bytes(column, 300, {})
        assert len(expected) == cache.manifest.shards(column.name)
        for view in range(3):
            found = [cache.shard_path(view, column.name, n).stat().st_size for n in range(len(expected))]
            assert found == expected
    assert size(cache, "cache.h5") == virtual_bytes(columns, 300, 3)
    assert size(cache, "rows.h5") == rows_bytes(cache.labels, None, {})
    assert size(cache, "samples.h5") == samples_bytes(kept_nothing(8))
    fitted = {name: constants_bytes(cache.layout(name), "int8", 1) for name in cache.manifest.columns}
    assert size(cache, "column-hint.layer.h5") == fitted["hint.layer"]
    assert fitted["logits"] == fitted["hint.fc:in"] == 0


def test_rows_that_have_lengths_of_their_own(tmp_path: Path) -> None:
    lengths = [3, 0, 900, 1, 0, 0, 0, 0, 5000, 2, 4]
    cache = make_ragged(tmp_path / "cache", lengths, shard_rows=4)
    write_virtual(cache)
    given_lengths = {"ids": np.array(lengths)}
    columns = [cache.layout(name) for name in cache.manifest.columns]
    for column in columns:
        expected = shards_bytes(column, len(lengths), given_lengths)
        found = [cache.shard_path(1, column.name, n).stat().st_size for n in range(3)]
        assert found == expected
    assert size(cache, "cache.h5") == virtual_bytes(columns, len(lengths), 2)
    assert size(cache, "rows.h5") == rows_bytes(cache.labels, None, given_lengths)


@pytest.mark.parametrize(("rows", "views"), [(20, 9), (20, 2000), (20_000, 3), (1000, 120), (90_000, 2)])
def test_the_file_over_all_shards(tmp_path: Path, rows: int, views: int) -> None:
    """To the byte; where it has too many shards for that, within 4 KiB for each of its four arrays."""
    hint = {"layer": ColumnRecord("values", [3, 5, 5], "fp16", 16)}
    cache, _ = make_cache(tmp_path / "cache", rows=rows, shard_rows=64, views=views, hints=hint, written=False)
    columns = [cache.layout(name) for name in cache.manifest.columns]
    written = write_virtual(cache).stat().st_size
    assert virtual_bytes(columns, rows, views) == written
    assert abs(virtual_bytes(columns, rows, views, most_parts=0) - written) < 4 * 4096


def test_names_of_files_take_the_width_of_the_longest(tmp_path: Path) -> None:
    names = ["a/b.jpg", "räder/č.jpg", "x"]
    labels = np.zeros(3, np.int32)
    width = max(len(name.encode()) for name in names)
    array = np.array([name.encode() for name in names])
    assert array.dtype.itemsize == width
    part = write_temporary(tmp_path / "rows.h5", rows_attributes("0" * 64, "0" * 64), {"label": labels, "name": array})
    assert rows_bytes(labels, names, {}) == part.stat().st_size


def size(cache: Cache, name: str) -> int:
    return (cache.folder / name).stat().st_size
