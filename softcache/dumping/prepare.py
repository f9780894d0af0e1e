"""What a dump needs to know before it begins: shapes of hints, pixels to keep, whether the teacher is the same."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch

from softcache.cache.agreement.recorded import Recorded, first_recorded
from softcache.cache.agreement.samples import recorded_digests
from softcache.cache.agreement.versions import versions_note
from softcache.cache.reader import Cache
from softcache.cache.schema import (
    KEPT_SAMPLES,
    LOGITS,
    MAX_SAMPLES_BYTES,
    MAX_SHARD_BYTES,
    HintColumn,
    Identity,
    Manifest,
    hint_column,
    most_samples,
)
from softcache.cache.writer import KeptSamples
from softcache.dumping.forward import Forward
from softcache.dumping.identity import default_shard_rows
from softcache.errors import CacheError, PixelsError, UsageError
from softcache.models._hooks import Taps
from softcache.views._digest import digest
from softcache.views._viewed import ViewedDataset

log = logging.getLogger(__name__)


def hint_shapes(
    forward: Forward,
    viewed: ViewedDataset,
    layers: Sequence[str],
    dtype: str | None,
    identity: Identity,
    existing: Manifest | None,
) -> dict[str, HintColumn]:
    """Shape, dtype and shard size of each layer asked for, from one run of the teacher on one row.

    ``dtype``: on disk; None is the cache's, or float16.

    Errors: ``CacheError`` where a layer is there in another dtype than is asked for.
    """
    found = dict(existing.state.hints) if existing else {}
    for layer in layers:
        hint_column(layer)  # refuses what can't be a path
        if layer in found and dtype not in (None, found[layer].dtype):
            raise CacheError(
                f"hint {layer} is there as {found[layer].dtype}, asked for as {dtype}: "
                "match --hint-dtype or use another --out"
            )
    new = [layer for layer in layers if layer not in found]
    if not new:
        return found
    with torch.inference_mode(), Taps(forward.network.model, new) as taps:
        forward.network(viewed.batch(np.arange(1), 0).to(forward.device))
        shapes = {layer: list(taps[layer].shape[1:]) for layer in new}
    dtype = dtype or "float16"
    for layer, shape in shapes.items():
        rows = min(identity.shard_rows, default_shard_rows(viewed, identity.classes, forward.device.type))
        while rows > 1 and rows * int(np.prod(shape)) * np.dtype(dtype).itemsize > MAX_SHARD_BYTES:
            rows //= 2
        found[layer] = HintColumn(shape, dtype, rows)
    return dict(sorted(found.items()))


def samples_to_keep(viewed: ViewedDataset, asked: int | str | None, existing: Manifest | None) -> int:
    """How many rows' pixels are kept: as asked (``"all"`` or a number), at least as many as the cache has; by default
    64.

    Errors: ``UsageError`` where they would take more room than ``samples.h5`` may.
    """
    rows, channels = len(viewed), viewed.samples.channels
    recorded = existing.state.samples_shape[0] if existing else 0
    most = most_samples(rows, viewed.size, channels)
    if asked is None:
        return max(recorded, min(KEPT_SAMPLES, most))
    wanted = rows if asked == "all" else min(int(asked), rows)
    if wanted > most:
        raise UsageError(
            f"--keep-samples {asked}: {wanted:,} rows of {viewed.size}×{viewed.size}×{channels} bytes are more than "
            f"the {MAX_SAMPLES_BYTES >> 30} GiB that a cache keeps: at most --keep-samples {most}"
        )
    return max(recorded, wanted)


def kept_samples(viewed: ViewedDataset, count: int, existing: Cache | None) -> KeptSamples:
    """``count`` evenly spaced rows and their pixels in view 0, so that a later mismatch can be examined.

    Pixels that are made after the teacher has seen view 0 are compared with what it saw. Errors (of the function that
    makes them): ``PixelsError``.
    """
    rows = np.unique(np.linspace(0, len(viewed) - 1, count).astype(np.int64))
    seen = existing if existing is not None and 0 in existing.complete_views(LOGITS) else None

    def pixels(some: np.ndarray) -> np.ndarray:
        made = viewed.batch(some, 0).numpy()
        if seen is not None:
            wrong = some[recorded_digests(seen, 0, some) != digest(made)]
            if len(wrong):
                raise PixelsError(
                    f"row {int(wrong[0])} in view 0 has other pixels than the teacher saw, so its sample can't be "
                    f"kept: keep samples with the versions that the cache was made with{versions_note(seen)}"
                )
        return made

    return KeptSamples(rows, (viewed.size, viewed.size, viewed.samples.channels), pixels)


def check_teacher(cache: Cache, viewed: ViewedDataset, forward: Forward, recorded: Recorded) -> None:
    """Computes one batch of a shard that is there again, and compares.

    Errors: ``CacheError`` where the teacher's logits differ, ``PixelsError`` where the pixels do.
    """
    found = first_recorded(cache, cache.manifest.identity.teacher.numerics.batch)
    if found is None:
        return
    view, first, count = found
    pixels = viewed.batch(np.arange(first, first + count), view).to(forward.device)
    logits, _ = forward(pixels)
    arrays = {name: values.cpu().numpy() for name, values in cache.layout(LOGITS).encode(logits).items()}
    arrays["digest"] = digest(pixels).cpu().numpy().astype(np.uint32)
    recorded.check(view, first, {LOGITS: arrays}, [LOGITS], logits.cpu())
