"""``cache.h5``: all shards as one file, for h5py, h5dump, HDFView, MATLAB, R.

Nothing of softcache reads it but for its user block, the bytes that HDF5 leaves to others: the line there says what
the file was made over, so that a cache from a stranger needs no HDF5 library to see whether that has changed.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path

import h5py
import numpy as np

from softcache.atomic import replace_file
from softcache.cache.reader import Cache
from softcache.cache.schema import VIRTUAL
from softcache.cache.shard import opened
from softcache.errors import IntegrityError

USER_BLOCK = 512  # the smallest that HDF5 has


def write_virtual(cache: Cache) -> Path:
    """Virtual datasets ``(views, rows, ...)`` over the shards, by relative path, so that the folder can be moved."""
    # made in memory, because the HDF5 library can't recover from a full disk
    content = io.BytesIO()
    with h5py.File(content, "w", libver="latest", userblock_size=USER_BLOCK) as file:
        for key, value in _attributes(cache).items():
            file.attrs.create(key, value)
        for column in _shown(cache):
            for name, (dtype, shape) in cache.arrays(column, cache.rows).items():
                dcpl = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
                dcpl.set_layout(h5py.h5d.VIRTUAL)
                dcpl.set_obj_track_times(False)  # times would make two files over the same shards differ
                space = h5py.h5s.create_simple((cache.views, *shape))
                for view in range(cache.views):
                    for number in range(cache.manifest.shards(column)):
                        first, rows = cache.shard_range(column, number)
                        part = (rows, *shape[1:])
                        path = cache.shard_path(view, column, number).relative_to(cache.folder)
                        space.select_hyperslab((view, first, *(0 for _ in shape[1:])), (1, *part))
                        dcpl.set_virtual(space, f"./{path}".encode(), name.encode(), h5py.h5s.create_simple(part))
                kind = h5py.h5t.py_create(np.dtype(dtype), logical=True)
                space.select_all()
                h5py.h5d.create(file.require_group(column).id, name.encode(), kind, space, dcpl)
    content.seek(0)
    content.write(_made_over(cache, len(content.getvalue())))
    replace_file(cache.folder / VIRTUAL, content.getvalue())
    return cache.folder / VIRTUAL


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
    columns = " ".join(_shown(cache))
    return {
        "cache_id": np.bytes_(cache.manifest.cache_id.encode()),
        "views": np.bytes_(str(cache.views).encode()),
        "columns": np.bytes_(columns.encode()),
    }
