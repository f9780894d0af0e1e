"""Fitting the codecs that have constants, before anything of their columns is kept."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from softcache.atomic import commit
from softcache.cache.column import Column
from softcache.cache.constants import constants_of, constants_sha256, read_arrays
from softcache.cache.manifest import Manifest
from softcache.cache.schema import MANIFEST, ColumnRecord, Identity
from softcache.cache.shard import write_temporary
from softcache.codecs._open import open_codec, sized_codec
from softcache.console import counted
from softcache.dumping.drawn import Said, said_of_drawn
from softcache.dumping.forward import Forward
from softcache.errors import CacheError, IntegrityError
from softcache.views._open import Viewed

log = logging.getLogger(__name__)


def with_constants(
    folder: Path,
    identity: Identity,
    viewed: Viewed,
    forward: Forward,
    records: Mapping[str, ColumnRecord],
    columns: Sequence[Column],
    views: int,
    said: Mapping[str, Said],
) -> dict[str, ColumnRecord]:
    """The records of columns, each with the hash of its codec's constants, which lie in the folder afterwards.

    The caller holds ``fitting``: one process fits them and writes their files, others wait for it and take what they
    find. A file that is missing is made again, of the same keys, if that gives the same numbers.

    ``columns``: how those of ``records`` are kept. ``views``: how many the cache will have. ``said``: what the teacher
    says of keys drawn of these, where that is known.

    Errors: ``IntegrityError`` for a damaged file, ``CacheError`` where shards are there that nothing can decode any
    more, ``NumericsError`` where nothing that the teacher says is finite.
    """
    found, having = dict(records), [column for column in columns if column.has_constants]
    if not having:
        return found
    held = Manifest.load(folder).state.columns if (folder / MANIFEST).exists() else {}
    missing: dict[int, list[Column]] = {}  # by the number of views that keys are drawn of
    for column in having:
        record = held.get(column.name) or records[column.name]
        if record.codec != records[column.name].codec:  # another process has settled its size
            column = dataclasses.replace(column, codec=open_codec(record.codec))
        found[column.name] = dataclasses.replace(record, fitted_views=record.fitted_views or views)
        sha256 = kept_constants(folder, identity, column, found[column.name])
        if sha256 is None:
            missing.setdefault(record.fitted_views or views, []).append(column)
        else:
            found[column.name] = dataclasses.replace(found[column.name], constants=sha256)
    for drawn_of, some in missing.items():
        for name, (codec, arrays) in _fit(
            identity, viewed, forward, some, drawn_of, found, said if drawn_of == views else {}
        ).items():
            found[name] = dataclasses.replace(found[name], codec=codec)
            sha256 = constants_sha256(arrays)
            if found[name].constants not in (None, sha256):
                raise CacheError(
                    f"the constants of {name} are lost, and the teacher now gives others: its shards can't be read "
                    "any more; take it away with softcache trim, or the cache where it is the only column, and "
                    "dump it again"
                )
            path, attributes = constants_of(folder, identity.cache_id(), name, found[name])
            commit(write_temporary(path, attributes, arrays), path)
            found[name] = dataclasses.replace(found[name], constants=sha256)
    return found


def kept_constants(folder: Path, identity: Identity, column: Column, record: ColumnRecord) -> str | None:
    """The hash of the constants that lie in the folder; None where none do, or only some of another column or dump."""
    path, attributes = constants_of(folder, identity.cache_id(), column.name, record)
    if not path.exists():
        return None
    try:
        return constants_sha256(read_arrays(path, attributes, column.constant_arrays, record.constants))
    except IntegrityError as error:
        if record.constants is None:
            return None  # left by a dump that was killed, or by one of something else
        raise IntegrityError(f"{error}: softcache verify {folder} --repair takes it away") from None


def _fit(
    identity: Identity,
    viewed: Viewed,
    forward: Forward,
    columns: Sequence[Column],
    views: int,
    records: Mapping[str, ColumnRecord],
    said: Mapping[str, Said],
) -> dict[str, tuple[str, dict[str, np.ndarray]]]:
    """The name of each column's codec, which may have chosen its size by what it was fitted on, and its constants."""
    unknown = [column for column in columns if column.name not in said]
    values_of = {**said, **said_of_drawn(identity, viewed, forward, unknown, views)}
    for column in columns:
        count = counted(len(values_of[column.name].values), "key" if column.lengths is None else "place")
        log.info(f"{column.name}: the codec is fitted on {count} of {counted(views, 'view')}")
    found = {}
    for column in columns:
        found[column.name] = fit_codec(column, records[column.name].codec, values_of[column.name].values)
    return found


def fit_codec(column: Column, codec: str, values: torch.Tensor) -> tuple[str, dict[str, np.ndarray]]:
    """The name of a column's codec, which may have chosen its size by values (K, …) float32 on the CPU, and its
    constants. ``codec``: as it is recorded before."""
    name = sized_codec(codec, values)
    sized = column if name == codec else dataclasses.replace(column, codec=open_codec(name))
    return name, sized.fit(values)
