"""Constants of the codecs of a converted cache: copied with their columns, or fitted to what the source says."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from softcache.atomic import commit
from softcache.cache.column import Column
from softcache.cache.constants import constants_of, constants_sha256, read_arrays
from softcache.cache.locks import fitting
from softcache.cache.schema import ColumnRecord
from softcache.cache.shard import write_temporary
from softcache.console import counted
from softcache.converting.columns import Wanted
from softcache.converting.source import Source
from softcache.dumping import drawn
from softcache.dumping.constants import fit_codec, kept_constants
from softcache.dumping.drawn import batches_of, drawn_keys, which_finite
from softcache.errors import CacheError
from softcache.ragged import Int64

log = logging.getLogger(__name__)


def with_constants(folder: Path, source: Source, wanted: Mapping[str, Wanted], views: int) -> dict[str, ColumnRecord]:
    """The records of columns, each with the hash of its codec's constants, which lie in the folder afterwards. They are
    never fitted again where they lie there. ``views``: how many the cache will have.

    Errors: ``IntegrityError`` for a damaged file, ``CacheError`` where shards are there that nothing can decode any
    more, ``NumericsError`` where nothing that the source says is finite.
    """
    found = {name: column.record for name, column in wanted.items()}
    identity = source.cache.manifest.identity
    if not any(column.layout.has_constants for column in wanted.values()):
        return found
    with fitting(folder):
        for name, column in wanted.items():
            if not column.layout.has_constants:
                continue
            record = dataclasses.replace(column.record, fitted_views=column.record.fitted_views or views)
            sha256 = kept_constants(folder, identity, column.layout, record)
            if sha256 is None:
                codec, arrays = _fit(source, column.layout, record) if column.recoded else _copied(source, name)
                sha256, record = constants_sha256(arrays), dataclasses.replace(record, codec=codec)
                if record.constants not in (None, sha256):
                    raise CacheError(
                        f"the constants of {name} are lost, and {source.cache.folder} now gives others: the shards of "
                        f"{folder} can't be read any more: convert into another folder"
                    )
                path, attributes = constants_of(folder, identity.cache_id(), name, record)
                commit(write_temporary(path, attributes, arrays), path)
            found[name] = dataclasses.replace(record, constants=sha256)
    return found


def _copied(source: Source, name: str) -> tuple[str, dict[str, np.ndarray]]:
    cache = source.cache
    record = cache.manifest.state.columns[name]
    path, attributes = constants_of(cache.folder, cache.manifest.cache_id, name, record)
    arrays = read_arrays(path, attributes, cache.layout(name).constant_arrays, record.constants)
    return record.codec, arrays


def _fit(source: Source, column: Column, record: ColumnRecord) -> tuple[str, dict[str, np.ndarray]]:
    """As a dump fits it: on keys drawn over all rows and views, but on what the source keeps of what the teacher said
    of them. The name of the codec, which may have chosen its size, and its constants."""
    cache = source.cache
    views = record.fitted_views or cache.views
    keys = drawn_keys(cache.manifest.cache_id, cache.rows, views, column.share)
    enough = _enough(source, column, batches_of(keys, cache.manifest.identity.grid.batch))
    log.info(
        f"{column.name}: the codec is fitted on {counted(sum(len(rows) for _, rows in enough), 'key')} of "
        f"{counted(views, 'view')}, for which {cache.folder} is read once"
    )
    values = source.values(column.name, enough)
    return fit_codec(column, record.codec, values[which_finite(values, column.name)])


def _enough(source: Source, column: Column, keys: list[tuple[int, Int64]]) -> list[tuple[int, Int64]]:
    """As many batches as are fitted on: until their values are too many bytes."""
    row_bytes, held, taken = 4 * int(np.prod(column.shape)), 0, []
    places = source.cache.places(column.name) if column.ragged else None
    for view, rows in keys:
        if held >= drawn.MOST_BYTES:
            break
        taken.append((view, rows))
        held += row_bytes * (len(rows) if places is None else int(places.take(rows).sum()))
    return taken
