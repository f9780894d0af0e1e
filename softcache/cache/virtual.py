"""``cache.h5``: all shards as one file, for h5py, h5dump, HDFView, MATLAB, R.

Nothing of softcache reads it but for its user block, the bytes that HDF5 leaves to others: the line there says what
the file was made over, so that a cache from a stranger needs no HDF5 library to see whether that has changed.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from softcache.atomic import replace_file
from softcache.cache.column import Column
from softcache.cache.reader import Cache
from softcache.cache.schema import VIRTUAL, shard_name
from softcache.cache.shard import opened
from softcache.errors import IntegrityError

USER_BLOCK = 512  # the smallest that HDF5 has
MOST_PARTS = 20_000  # that a file is made over to know its size, which takes half a second
SAMPLE = 128  # shards that stand for those like them


def write_virtual(cache: Cache) -> Path:
    """Virtual datasets ``(views, rows, ...)`` over the shards, by relative path, so that the folder can be moved."""
    columns = [cache.layout(name) for name in _shown(cache)]
    content = _content(_attributes(cache), cache.rows, cache.views, _all_shards(columns, cache.rows))
    content.seek(0)
    content.write(_made_over(cache, len(content.getvalue())))
    replace_file(cache.folder / VIRTUAL, content.getvalue())
    return cache.folder / VIRTUAL


def virtual_bytes(columns: Sequence[Column], rows: int, views: int, *, most_parts: int = MOST_PARTS) -> int:
    """How large ``cache.h5`` is of a cache of so many rows and views with these columns, ragged ones among them.

    To the byte where it has at most ``most_parts`` arrays of shards. One over more is not made for it: each further
    shard takes as many bytes as one like it, but for what HDF5 rounds up, which is less than 4 KiB for each array of a
    column.
    """
    shown = [column for column in columns if not column.ragged]
    attributes, parts = _told("0" * 64, views, [column.name for column in shown]), _all_shards(shown, rows)
    if views * sum(len(part.numbers) for part in parts) <= most_parts:
        return len(_content(attributes, rows, views, parts).getvalue())
    few = [_Part(part.column, part.name, [n for run in part.runs for n in run[:SAMPLE]]) for part in parts]
    further = 0
    for part in parts:
        for run in part.runs:
            count = views * len(run) - len(run[:SAMPLE])
            further += count * _bytes_each(rows, _Part(part.column, part.name, run[:SAMPLE]))
    return len(_content(attributes, rows, 1, few).getvalue()) + further


@dataclass(frozen=True)
class _Part:
    """An array of a column, and the numbers of the shards that it lies in."""

    column: Column
    name: str
    numbers: Sequence[int]

    @property
    def runs(self) -> list[Sequence[int]]:
        """Those whose names and places take the same number of bytes, of numbers from 0 on."""
        ends = [2**16, 2**32, 100_000 * self.column.shard_rows]  # places of 2, 4 and 8 bytes, names of 5 digits and 6
        count = len(self.numbers)
        bounds = sorted({0, count, *(min(count, -(-end // self.column.shard_rows)) for end in ends)})
        return [self.numbers[first:last] for first, last in itertools.pairwise(bounds)]


def _all_shards(columns: Sequence[Column], rows: int) -> list[_Part]:
    return [
        _Part(column, name, range(-(-rows // column.shard_rows))) for column in columns for name in column.arrays(rows)
    ]


def _bytes_each(rows: int, part: _Part) -> int:
    """Of a shard like these."""
    views = 8 * -(-SAMPLE // len(part.numbers))  # HDF5 rounds up to 8 bytes
    one, two = (len(_content({}, rows, count, [part]).getvalue()) for count in (views, 2 * views))
    return (two - one) // (views * len(part.numbers))


def _content(attributes: Mapping[str, np.bytes_], rows: int, views: int, parts: Sequence[_Part]) -> io.BytesIO:
    """The file but for its user block, in memory: the HDF5 library can't recover from a full disk."""
    content = io.BytesIO()
    with h5py.File(content, "w", libver="latest", userblock_size=USER_BLOCK) as file:
        for key, value in attributes.items():
            file.attrs.create(key, value)
        for array in parts:
            column, name = array.column, array.name
            dtype, shape = column.arrays(rows)[name]
            dcpl = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            dcpl.set_layout(h5py.h5d.VIRTUAL)
            dcpl.set_obj_track_times(False)  # times would make two files over the same shards differ
            space = h5py.h5s.create_simple((views, *shape))
            for view in range(views):
                for number in array.numbers:
                    first = number * column.shard_rows
                    part = (min(column.shard_rows, rows - first), *shape[1:])
                    path = f"./{shard_name(view, column.name, number)}"
                    space.select_hyperslab((view, first, *(0 for _ in shape[1:])), (1, *part))
                    dcpl.set_virtual(space, path.encode(), name.encode(), h5py.h5s.create_simple(part))
            kind = h5py.h5t.py_create(np.dtype(dtype), logical=True)
            space.select_all()
            h5py.h5d.create(file.require_group(column.name).id, name.encode(), kind, space, dcpl)
    return content


def _shown(cache: Cache) -> list[str]:
    """Columns of which every row has the same shape: rows that have lengths of their own are no virtual dataset."""
    return [name for name in cache.manifest.columns if not cache.manifest.state.columns[name].ragged]


def is_current(cache: Cache) -> bool:
    """Whether ``cache.h5`` is there and over the views and columns that the cache now has."""
    try:
        with opened(cache.folder / VIRTUAL) as (fd, size):
            wanted = _made_over(cache, size)
            return os.pread(fd, len(wanted), 0) == wanted
    except (OSError, IntegrityError):  # none, or no file
        return False


def _made_over(cache: Cache, size: int) -> bytes:
    """A line of fixed length, however many columns there are. ``size``: the file's, so that half of one differs."""
    attributes = {"size": size} | {key: value.decode() for key, value in _attributes(cache).items()}
    attributes |= {name: record.sha256() for name, record in sorted(cache.manifest.state.columns.items())}
    return f"softcache {hashlib.sha256(json.dumps(attributes).encode()).hexdigest()}\n".encode()


def _attributes(cache: Cache) -> dict[str, np.bytes_]:
    return _told(cache.manifest.cache_id, cache.views, _shown(cache))


def _told(cache_id: str, views: int, columns: Sequence[str]) -> dict[str, np.bytes_]:
    return {
        "cache_id": np.bytes_(cache_id.encode()),
        "views": np.bytes_(str(views).encode()),
        "columns": np.bytes_(" ".join(columns).encode()),
    }
