"""``cache.h5``: all shards as one file, for h5py, h5dump, HDFView, MATLAB, R. Nothing of softcache reads it."""

from __future__ import annotations

from pathlib import Path

import h5py

from softcache.cache.atomic import commit, part_path, sync_folder
from softcache.cache.reader import Cache
from softcache.cache.schema import VIRTUAL


def write_virtual(cache: Cache) -> Path:
    """Virtual datasets ``(views, rows, ...)`` over the shards, by relative path, so that the folder can be moved."""
    final = cache.folder / VIRTUAL
    part = part_path(final)
    try:
        with h5py.File(part, "w", libver="latest") as file:
            for column in cache.manifest.columns:
                for name, (dtype, shape) in cache.arrays(column, cache.rows).items():
                    layout = h5py.VirtualLayout((cache.views, *shape), dtype=dtype)
                    for view in range(cache.views):
                        for number in range(cache.manifest.shards(column)):
                            first, rows = cache.shard_range(column, number)
                            path = cache.shard_path(view, column, number).relative_to(cache.folder)
                            source = h5py.VirtualSource(f"./{path}", name, shape=(rows, *shape[1:]), dtype=dtype)
                            layout[view, first : first + rows] = source
                    place = name if column == "logits" else f"{column}/{name}"
                    file.create_virtual_dataset(place, layout)
        commit(part, final)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(cache.folder)
    return final
