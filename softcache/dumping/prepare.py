"""What a dump needs to know before it begins: inputs to keep, whether the teacher is the same."""

from __future__ import annotations

import logging

import numpy as np
import torch

from softcache.cache.agreement.recorded import Recorded, first_recorded
from softcache.cache.agreement.samples import has_digests, recorded_digests
from softcache.cache.agreement.versions import versions_note
from softcache.cache.column import DIGEST, OFFSET
from softcache.cache.manifest import Manifest
from softcache.cache.reader import Cache
from softcache.cache.schema import (
    KEPT_SAMPLES,
    MAX_SAMPLES_BYTES,
    most_samples,
)
from softcache.cache.shares import own_values
from softcache.cache.writer import KeptSamples
from softcache.dumping.forward import Forward
from softcache.dumping.grid import rows_together
from softcache.errors import PixelsError, UsageError
from softcache.fields import arrays_of
from softcache.ragged import offsets_of
from softcache.views._open import Viewed

log = logging.getLogger(__name__)


def samples_to_keep(viewed: Viewed, asked: int | str | None, existing: Manifest | None) -> int:
    """How many rows' inputs are kept: as asked (``"all"`` or a number), at least as many as the cache has; by default
    64.

    Errors: ``UsageError`` where they would take more room than ``samples.h5`` may.
    """
    rows, row_bytes = len(viewed), viewed.row_bytes
    recorded = existing.state.samples if existing else 0
    most = most_samples(rows, row_bytes)
    if asked is None:
        return max(recorded, min(KEPT_SAMPLES, most))
    wanted = rows if asked == "all" else min(int(asked), rows)
    if wanted > most:
        raise UsageError(
            f"--keep-samples {asked}: {wanted:,} rows of {row_bytes:,} bytes are more than "
            f"the {MAX_SAMPLES_BYTES >> 30} GiB that a cache keeps: at most --keep-samples {most}"
        )
    return max(recorded, wanted)


def kept_samples(viewed: Viewed, count: int, existing: Cache | None) -> KeptSamples:
    """``count`` evenly spaced rows and their inputs in view 0, so that a later mismatch can be examined.

    Inputs that are made after the teacher has seen view 0 are compared with what it saw. Errors (of the function that
    makes them): ``PixelsError``.
    """
    rows = np.unique(np.linspace(0, len(viewed) - 1, count).astype(np.int64))
    seen = existing if existing is not None and has_digests(existing, 0) else None

    def inputs(some: np.ndarray) -> dict[str, np.ndarray | list[np.ndarray]]:
        made = viewed.batch(some, 0)
        if seen is not None:
            wrong = some[recorded_digests(seen, 0, some) != viewed.digest(made).numpy()]
            if len(wrong):
                raise PixelsError(
                    f"row {int(wrong[0])} in view 0 has other {viewed.samples.input_names} than the teacher saw, so "
                    "its sample can't be kept: keep samples with the versions that the cache was made with"
                    f"{versions_note(seen)}"
                )
        return arrays_of(made)

    return KeptSamples(rows, viewed.inputs, inputs, viewed.lengths())


def check_teacher(cache: Cache, viewed: Viewed, forward: Forward, recorded: Recorded) -> None:
    """Computes one batch of a shard that is there again, as it was computed then, and compares.

    Errors: ``CacheError`` where what the teacher says differs, ``PixelsError`` where the pixels do.
    """
    grid = cache.manifest.identity.grid
    found = first_recorded(cache)
    if found is None:
        return
    column, view, first, count = found
    # The whole batch of the grid, of which the shard may have a part.
    block = first - first % grid.block_rows
    batches = rows_together(grid, block, min(grid.block_rows, cache.rows - block), viewed.lengths())
    rows = next(batch for batch in batches if first in batch)
    inputs = viewed.batch(rows, view).to(forward.device)
    values = Forward(forward.network, [column], forward.device, amp=forward.amp)(inputs)[column]
    digests, layout = viewed.digest(inputs).cpu().numpy().astype(np.uint32), cache.layout(column)
    ours = np.argsort(rows)
    ours = ours[(first <= rows[ours]) & (rows[ours] < first + count)]
    for run in np.split(ours, np.flatnonzero(np.diff(rows[ours]) > 1) + 1):  # neighbouring rows are compared at once
        said = values[torch.from_numpy(run).to(values.device)]
        arrays: dict[str, np.ndarray] = {}
        if layout.ragged:
            places = cache.places(column).take(rows[run])
            said = said if layout.lengths is None else said[:, : int(places.max())]
            said = own_values(column, said, places, f"the teacher's {column}")
            arrays[OFFSET] = offsets_of(places)
        arrays |= {name: coded.cpu().numpy() for name, coded in layout.encode(said).items()}
        arrays[DIGEST] = digests[run]
        recorded.check(view, int(rows[run[0]]), {column: arrays}, [column], {column: said.cpu()})
