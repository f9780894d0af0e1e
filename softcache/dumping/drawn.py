"""What the teacher says of keys that are drawn over all rows and views: what codecs are fitted to and chosen by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from softcache.cache.column import Column
from softcache.cache.schema import Identity
from softcache.cache.shares import places_in
from softcache.datasets._hash import splitmix64
from softcache.dumping.forward import Forward
from softcache.errors import NumericsError
from softcache.ragged import Int64, own_places, places_of
from softcache.views._open import Viewed

KEYS = 4096
MOST_BYTES = 256 << 20  # of a column's values: of maps fewer keys are taken


@dataclass(frozen=True)
class Said:
    """``values``: (K, …) float32 on the CPU, all finite; ``rows``: (K,), the row of each; ``keys``: how many were
    drawn. Of a ragged column all places of the drawn keys, one after the other."""

    values: torch.Tensor
    rows: Int64
    keys: int

    def halves(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Two parts that have no row in common, in whatever view: one to fit a codec to, one to judge it by. Both are
        all of it where there are too few rows for two."""
        second = splitmix64(self.rows.astype(np.uint64)) >> np.uint64(63) == 1
        if second.all() or not second.any():
            return self.values, self.values
        return self.values[torch.from_numpy(~second)], self.values[torch.from_numpy(second)]


def drawn_keys(cache_id: str, rows: int, views: int, share: float | None = None) -> np.ndarray:
    """(K, 2) int64: the views and rows of up to 4,096 keys, in random order, drawn over all by the cache's hash.
    ``share``: of the ``rows``, those that are drawn from.

    >>> drawn_keys("00" * 32, 3, 2).shape
    (6, 2)
    """
    among = None if share is None else np.flatnonzero(places_in(share, rows))
    count = rows if among is None else len(among)
    total = count * views
    chosen = np.random.default_rng(int(cache_id, 16)).choice(total, min(KEYS, total), replace=False)
    views_k, rows_k = np.divmod(chosen, count)
    return np.stack([views_k, rows_k if among is None else among[rows_k]], axis=1)


def said_of_drawn(
    identity: Identity, viewed: Viewed, forward: Forward, columns: Sequence[Column], views: int
) -> dict[str, Said]:
    """What the teacher says of keys that are drawn of ``views`` views, by column, or until that is too many bytes.
    Columns of a share of the rows have keys of their own.

    Errors: ``NumericsError`` where nothing that the teacher says is finite.
    """
    found: dict[str, Said] = {}
    for share in dict.fromkeys(column.share for column in columns):
        some = [column for column in columns if column.share == share]
        keys = drawn_keys(identity.cache_id(), len(viewed), views, share)
        found |= _said_of(viewed, forward, some, keys, identity.grid.batch)
    return found


def _said_of(
    viewed: Viewed, forward: Forward, columns: Sequence[Column], keys: np.ndarray, batch: int
) -> dict[str, Said]:
    """Of columns that have values of all of these keys."""
    run = Forward(forward.network, [column.name for column in columns], forward.device, amp=forward.amp)
    found: dict[str, list[torch.Tensor]] = {column.name: [] for column in columns}
    rows_of: dict[str, list[Int64]] = {column.name: [] for column in columns}
    size, drawn = dict.fromkeys(found, 0), dict.fromkeys(found, 0)
    for view, rows in batches_of(keys, batch):
        full = [name for name, held in size.items() if held >= MOST_BYTES]
        if len(full) == len(columns):
            break
        made = run(viewed.batch(rows, view).to(forward.device))
        for column in columns:
            if column.name in full:
                continue
            values, own = made[column.name].float(), rows
            if column.lengths is not None:
                places = places_of(viewed.lengths()[column.lengths][rows], column.stride)
                values, own = own_places(values, places, f"the teacher's {column.name}"), np.repeat(rows, places)
            found[column.name].append(values.cpu())
            rows_of[column.name].append(own)
            size[column.name] += values.nbytes
            drawn[column.name] += len(rows)
    said = {}
    for name, parts in found.items():
        values, of = torch.cat(parts), np.concatenate(rows_of[name])
        finite = which_finite(values, name)
        said[name] = Said(values[finite], of[finite.numpy()], drawn[name])
    return said


def batches_of(keys: np.ndarray, batch: int) -> list[tuple[int, np.ndarray]]:
    """Views and rows, by the batch: a few keys of every view come before the next ones of the first."""
    found = []
    for view in np.unique(keys[:, 0]).tolist():
        rows = keys[keys[:, 0] == view, 1]
        found += [(at, view, rows[at : at + batch]) for at in range(0, len(rows), batch)]
    return [(view, rows) for _, view, rows in sorted(found, key=lambda part: part[:2])]


def which_finite(values: torch.Tensor, name: str) -> torch.Tensor:
    """(K,) bool: of which samples (K, …) all numbers are finite; who keeps them refuses the others by their keys.

    Errors: ``NumericsError`` where there are none.
    """
    finite = values.reshape(len(values), -1).isfinite().all(1) if values.numel() else torch.zeros(0, dtype=torch.bool)
    if not bool(finite.any()):
        raise NumericsError(f"nothing that the teacher says as {name} is finite, so no codec can be fitted to it")
    return finite
