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
from softcache.cache.locks import fitting
from softcache.cache.manifest import Manifest
from softcache.cache.schema import MANIFEST, ColumnRecord, Identity
from softcache.cache.shard import write_temporary
from softcache.codecs._open import open_codec, sized_codec
from softcache.console import counted
from softcache.dumping.forward import Forward
from softcache.errors import CacheError, IntegrityError, NumericsError
from softcache.ragged import own_places, places_of
from softcache.views._open import Viewed

log = logging.getLogger(__name__)

KEYS = 4096
MOST_BYTES = 256 << 20  # of a column's values: maps are fitted on fewer keys


def with_constants(
    folder: Path,
    identity: Identity,
    viewed: Viewed,
    forward: Forward,
    records: Mapping[str, ColumnRecord],
    columns: Sequence[Column],
    views: int,
) -> dict[str, ColumnRecord]:
    """The records of columns, each with the hash of its codec's constants, which lie in the folder afterwards.

    One process fits them and writes their files, others wait for it and take what they find. A file that is missing is
    made again, of the same keys, if that gives the same numbers.

    ``columns``: how those of ``records`` are kept. ``views``: how many the cache will have.

    Errors: ``IntegrityError`` for a damaged file, ``CacheError`` where shards are there that nothing can decode any
    more, ``NumericsError`` where nothing that the teacher says is finite.
    """
    found, having = dict(records), [column for column in columns if column.has_constants]
    if not having:
        return found
    with fitting(folder):
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
            for name, (codec, arrays) in _fit(identity, viewed, forward, some, drawn_of, found).items():
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
) -> dict[str, tuple[str, dict[str, np.ndarray]]]:
    """The name of each column's codec, which may have chosen its size by what it was fitted on, and its constants."""
    keys = drawn_keys(identity.cache_id(), len(viewed), views)
    said = _said(viewed, forward, columns, keys, identity.grid.batch)
    for column in columns:
        count = counted(len(said[column.name]), "place" if column.ragged else "key")
        log.info(f"{column.name}: the codec is fitted on {count} of {counted(views, 'view')}")
    found = {}
    for column in columns:
        found[column.name] = fit_codec(column, records[column.name].codec, said[column.name])
    return found


def fit_codec(column: Column, codec: str, values: torch.Tensor) -> tuple[str, dict[str, np.ndarray]]:
    """The name of a column's codec, which may have chosen its size by values (K, …) float32 on the CPU, and its
    constants. ``codec``: as it is recorded before."""
    name = sized_codec(codec, values)
    sized = column if name == codec else dataclasses.replace(column, codec=open_codec(name))
    return name, sized.fit(values)


def drawn_keys(cache_id: str, rows: int, views: int) -> np.ndarray:
    """(K, 2) int64: the views and rows of up to 4,096 keys, in random order, drawn over all by the cache's hash.

    >>> drawn_keys("00" * 32, 3, 2).shape
    (6, 2)
    """
    total = rows * views
    chosen = np.random.default_rng(int(cache_id, 16)).choice(total, min(KEYS, total), replace=False)
    return np.stack(np.divmod(chosen, rows), axis=1)


def _said(
    viewed: Viewed, forward: Forward, columns: Sequence[Column], keys: np.ndarray, batch: int
) -> dict[str, torch.Tensor]:
    """What the teacher says of these keys, (K, …) float32 on the CPU by column, or until they are too many bytes; of a
    ragged column of all places, one after the other."""
    run = Forward(forward.network, [column.name for column in columns], forward.device, amp=forward.amp)
    found: dict[str, list[torch.Tensor]] = {column.name: [] for column in columns}
    size = dict.fromkeys(found, 0)
    for view, rows in batches_of(keys, batch):
        full = [name for name, held in size.items() if held >= MOST_BYTES]
        if len(full) == len(columns):
            break
        made = run(viewed.batch(rows, view).to(forward.device))
        for column in columns:
            if column.name in full:
                continue
            values = made[column.name].float()
            if column.lengths is not None:
                places = places_of(viewed.lengths()[column.lengths][rows], column.stride)
                values = own_places(values, places, f"the teacher's {column.name}")
            found[column.name].append(values.cpu())
            size[column.name] += values.nbytes
    return {name: finite_values(torch.cat(parts), name) for name, parts in found.items()}


def batches_of(keys: np.ndarray, batch: int) -> list[tuple[int, np.ndarray]]:
    """Views and rows, by the batch: a few keys of every view come before the next ones of the first."""
    found = []
    for view in np.unique(keys[:, 0]).tolist():
        rows = keys[keys[:, 0] == view, 1]
        found += [(at, view, rows[at : at + batch]) for at in range(0, len(rows), batch)]
    return [(view, rows) for _, view, rows in sorted(found, key=lambda part: part[:2])]


def finite_values(values: torch.Tensor, name: str) -> torch.Tensor:
    """Samples of which all numbers are finite; who keeps them refuses the others by their keys.

    Errors: ``NumericsError`` where there are none.
    """
    kept = values[values.flatten(1).isfinite().all(1)] if values.ndim > 1 else values[values.isfinite()]
    if not len(kept):
        raise NumericsError(f"nothing that the teacher says as {name} is finite, so its codec can't be fitted")
    return kept
