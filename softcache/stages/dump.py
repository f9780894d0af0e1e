"""Run the teacher once per key: ``softcache dump``."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from softcache.atomic import dead_parts, remove_dead_parts
from softcache.cache.locks import remove_stale_locks, writing
from softcache.cache.mismatch import refuse_other
from softcache.cache.reader import Cache
from softcache.cache.recorded import Recorded, first_recorded
from softcache.cache.schema import (
    KEPT_SAMPLES,
    LOGITS,
    MANIFEST,
    MAX_SHARD_BYTES,
    ROWS,
    SAMPLES,
    HintColumn,
    Identity,
    Manifest,
    State,
    hint_column,
)
from softcache.cache.virtual import is_current, write_virtual
from softcache.cache.writer import create_or_extend, plan, update_state
from softcache.console import say, warn
from softcache.datasets._open import open_samples
from softcache.distributed import local_rank, rank, world
from softcache.errors import CacheError, LockedError, UsageError
from softcache.models._hooks import Taps
from softcache.stages.agreement import check_pixels
from softcache.stages.batch import with_batch
from softcache.stages.estimate import Estimate, estimate, refuse_too_large, timed
from softcache.stages.identity import (
    DTYPES,
    DumpConfig,
    data_fingerprint,
    default_shard_rows,
    identify,
    known_identity,
    provenance,
    same_kind,
    weights_fingerprint,
)
from softcache.stages.places import cache_folder, default_data, find_teacher, make_folder
from softcache.training.config import configure, pick_device, tf32
from softcache.training.dumping import Forward, run_blocks
from softcache.views._digest import digest
from softcache.views._viewed import ViewedDataset

DEFAULT_VIEWS = 4
_FULL = {errno.ENOSPC: "no space left", errno.EDQUOT: "quota exceeded", errno.EFBIG: "file size limit"}


@dataclass
class Dumped:
    """The cache's folder, keys computed now, seconds spent in this call, and the teacher's top-1 on the labels."""

    folder: Path
    keys: int
    seconds: float
    teacher_top1: float | None = None
    info: dict[str, Any] = field(default_factory=dict)
    estimate: Estimate | None = None


def dump(teacher: str = "resnet50", *, out: str | Path | None = None, dry_run: bool = False, **options: Any) -> Dumped:
    """Computes what is missing of a cache and says what it then is.

    ``options``: the fields of ``DumpConfig``. Errors: ``CacheError`` where ``out`` holds a cache of another
    identity, its teacher now says something else, or the disk is too small; ``LockedError`` where another process
    writes the same part; ``NumericsError`` with the key for logits that are not finite or don't fit the codec.
    """
    began = time.perf_counter()
    asked = configure(DumpConfig, {"teacher": teacher, **options})
    part = _part(asked)
    dataset, size = default_data(asked.teacher, asked.dataset, asked.size)
    samples = open_samples(dataset, asked.split, data_dir=asked.data_dir, download=bool(asked.download))
    folder = Path(out) if out is not None else cache_folder(asked.teacher, samples.spec, asked.split)
    existing = Cache(folder) if (folder / MANIFEST).exists() else None
    asked = dataclasses.replace(asked, dataset=dataset, size=asked.size if existing else size)
    config = asked.settled(existing)
    viewed = ViewedDataset(samples, config.augment, seed=config.view_seed or 0, size=config.size)
    device = _device(config.device)
    same_kind(existing.manifest if existing else None, device)
    if existing:
        known = known_identity(viewed, config, device.type)
        if known:
            refuse_other(existing.manifest.identity, known, folder)
            if not dry_run and _is_whole(existing, config):
                return _done(folder, config, began)
    network = find_teacher(
        config.teacher,
        samples,
        weights=config.teacher_weights,
        normalize=config.normalize,
        size=config.teacher_size,
    )
    weights = weights_fingerprint(network, keep=not dry_run)  # before its dtype changes
    config = with_batch(config, network, viewed, device, _part(config))
    data = data_fingerprint(samples, config, keep=not dry_run)
    identity = identify(network, weights, data, viewed, config, device.type)
    if existing:
        refuse_other(existing.manifest.identity, identity, folder)
        if not dry_run and _is_whole(existing, config):
            return _done(folder, config, began)
        if (folder / SAMPLES).exists():  # verify --repair takes it away where it is damaged
            check_pixels(existing, viewed)
    views = config.views or (existing.views if existing else DEFAULT_VIEWS)
    network = network.to(device, DTYPES[identity.teacher.numerics.dtype]).eval()
    if config.channels_last:
        network.to(memory_format=torch.channels_last)
    layers = sorted({*config.hints, *(existing.manifest.state.hints if existing else ())})
    forward = Forward(
        network,
        layers,
        device,
        amp=identity.teacher.numerics.amp,
        compiled=identity.teacher.numerics.compile,
        hint_dtype=config.hint_dtype or "float16",
    )
    with tf32(identity.teacher.numerics.tf32):
        hints = hint_shapes(forward, viewed, config, identity, existing.manifest if existing else None)
        guess = estimate(identity, hints, views, folder, existing)
        if dry_run:
            guess = timed(guess, forward, viewed, identity.teacher.numerics.batch, config.workers)
            return Dumped(folder, 0, time.perf_counter() - began, estimate=guess)
        refuse_too_large(guess, folder)
        make_folder(folder)
        with _told(folder), writing(folder, part):
            keys = _compute(folder, identity, viewed, forward, hints, views, config)
            finish(folder)
    return _done(folder, config, began, keys)


def _compute(
    folder: Path,
    identity: Identity,
    viewed: ViewedDataset,
    forward: Forward,
    hints: dict[str, HintColumn],
    views: int,
    config: DumpConfig,
) -> int:
    """Computes this part's missing shards; returns how many keys that were."""
    _remove_leftovers(folder)
    cache = create_or_extend(
        folder,
        identity,
        views=views,
        hints=hints,
        made=provenance(config, viewed, forward.device),
        labels=viewed.samples.labels,
        names=viewed.samples.names,
        samples=kept_samples(viewed),
    )
    blocks = plan(cache, views, cache.manifest.columns, _part(config))
    wanted = {column for block in blocks for column in block.columns}
    forward.layers = [layer for layer in cache.manifest.state.hints if hint_column(layer) in wanted]
    for layer, hint in cache.manifest.state.hints.items():
        forward.hint_dtypes[layer] = getattr(torch, hint.dtype)
    keys = sum(block.rows for block in blocks)
    say(
        f"dump {forward.network.spec} on {config.dataset}/{config.split}: {cache.rows:,} rows × {views} views, "
        f"recipe {viewed.recipe}, codec {identity.codec}, hints {', '.join(cache.manifest.state.hints) or 'none'}, "
        f"on {forward.device}; {keys:,} of {cache.rows * views:,} keys to compute"
    )
    if keys:
        recorded = Recorded(cache)
        check_teacher(cache, viewed, forward, recorded)
        run_blocks(
            cache,
            viewed,
            forward,
            blocks,
            workers=config.workers,
            recorded=recorded,
            measured=lambda error, count: update_state(folder, lambda state: _with_error(state, error, count)),
        )
    return keys


def check_teacher(cache: Cache, viewed: ViewedDataset, forward: Forward, recorded: Recorded) -> None:
    """Whether the teacher still says what it has said: one batch of a shard that is there, computed again.

    Errors: ``CacheError`` and ``PixelsError`` where not.
    """
    found = first_recorded(cache, cache.manifest.identity.teacher.numerics.batch)
    if found is None:
        return
    view, first, count = found
    pixels = viewed.batch(np.arange(first, first + count), view).to(forward.device)
    logits, _ = forward(pixels)
    arrays = {f"logits/{name}": values.cpu().numpy() for name, values in cache.codec.encode(logits).items()}
    arrays["digest"] = digest(pixels).cpu().numpy().astype(np.uint32)
    recorded.check(view, first, {LOGITS: arrays}, [LOGITS])


def hint_shapes(
    forward: Forward, viewed: ViewedDataset, config: DumpConfig, identity: Identity, existing: Manifest | None
) -> dict[str, HintColumn]:
    """Shape, dtype and shard size of each layer asked for, from one run of the teacher on one row.

    Errors: ``CacheError`` where a layer is there in another dtype than is asked for.
    """
    found = dict(existing.state.hints) if existing else {}
    for layer in config.hints:
        hint_column(layer)  # refuses what can't be a path
        if layer in found and config.hint_dtype not in (None, found[layer].dtype):
            raise CacheError(
                f"hint {layer} is there as {found[layer].dtype}, asked for as {config.hint_dtype}: "
                "match --hint-dtype or use another --out"
            )
    new = [layer for layer in config.hints if layer not in found]
    if not new:
        return found
    with torch.inference_mode(), Taps(forward.network.model, new) as taps:
        forward.network(viewed.batch(np.arange(1), 0).to(forward.device))
        shapes = {layer: list(taps[layer].shape[1:]) for layer in new}
    dtype = config.hint_dtype or "float16"
    for layer, shape in shapes.items():
        rows = min(identity.shard_rows, default_shard_rows(viewed, identity.classes, forward.device.type))
        while rows > 1 and rows * int(np.prod(shape)) * np.dtype(dtype).itemsize > MAX_SHARD_BYTES:
            rows //= 2
        found[layer] = HintColumn(shape, dtype, rows)
    return dict(sorted(found.items()))


def kept_samples(viewed: ViewedDataset) -> tuple[np.ndarray, np.ndarray]:
    """Rows spread over the dataset and their pixels in view 0, so that a mismatch can be looked at later."""
    rows = np.unique(np.linspace(0, len(viewed) - 1, KEPT_SAMPLES).astype(np.int64))
    return rows, viewed.batch(rows, 0).numpy()


def near_chance(top1: float, classes: int) -> bool:
    """Whether an accuracy is less than a twentieth of the way from chance to perfect."""
    return classes > 1 and top1 < (1 + 0.05 * (classes - 1)) / classes


def finish(folder: Path) -> None:
    """Once nothing is missing: the teacher's accuracy on the labels, and the one file over all shards."""
    cache = Cache(folder)
    if cache.missing(cache.manifest.columns, cache.views):
        return
    if cache.manifest.state.teacher_top1 is None:
        top1 = teacher_accuracy(cache)
        if top1 is not None:
            update_state(folder, lambda state: dataclasses.replace(state, teacher_top1=top1))
            classes = cache.manifest.identity.classes
            if near_chance(top1, classes):
                warn(
                    f"the teacher's top-1 on the labels is {100 * top1:.2f} %, chance is {100 / classes:.2f} %: "
                    "look for another class order, other channels or normalization, or weights that weren't loaded"
                )
    if not is_current(cache):
        write_virtual(cache)


def teacher_accuracy(cache: Cache) -> float | None:
    """Share of labelled rows of view 0 whose largest logit is the label's; ``None`` without labels."""
    rows = np.flatnonzero(cache.labels >= 0)
    if not len(rows):
        return None
    reader, hits = cache.column(LOGITS), 0
    for first in range(0, len(rows), 4096):
        some = rows[first : first + 4096]
        hits += int((cache.decode(reader.gather(0, some)).argmax(1).numpy() == cache.labels[some]).sum())
    return hits / len(rows)


def _is_whole(cache: Cache, config: DumpConfig) -> bool:
    """Whether all that is asked for is there, by the folders' listings alone."""
    state, views = cache.manifest.state, config.views or cache.views
    return (
        views <= state.views
        and all(
            layer in state.hints and config.hint_dtype in (None, state.hints[layer].dtype) for layer in config.hints
        )
        and all((cache.folder / name).exists() for name in (ROWS, SAMPLES))
        and not cache.missing(cache.manifest.columns, views)
    )


def _done(folder: Path, config: DumpConfig, began: float, keys: int = 0) -> Dumped:
    cache = Cache(folder)
    if not keys and os.access(folder, os.W_OK):
        remove_stale_locks(folder)
        if dead_parts(folder) or not is_current(cache):
            # a dump was killed between its last shard and its end; or another is at work, which does this then
            with contextlib.suppress(LockedError), _told(folder), writing(folder, _part(config)):
                _remove_leftovers(folder)
                finish(folder)
            cache = Cache(folder)
    return Dumped(folder, keys, time.perf_counter() - began, cache.manifest.state.teacher_top1, cache.describe())


def _remove_leftovers(folder: Path) -> None:
    for leftover in remove_dead_parts(folder):
        say(f"removed {leftover.name}: its writer is gone")


def _with_error(state: State, error: dict[str, float], keys: int) -> State:
    """The codec's error on as many keys as any dump into this cache has measured it on."""
    if keys <= state.codec_error.get("keys", 0):
        return state
    return dataclasses.replace(state, codec_error={**error, "keys": float(keys)})


def _part(config: DumpConfig) -> tuple[int, int]:
    """The share of the work that was asked for; under torchrun each process has its own."""
    if config.part is not None and world() > 1:
        raise UsageError("--part and torchrun both divide the work: use one of them")
    return config.part or (rank() + 1, world())


def _device(name: str) -> torch.device:
    """Under torchrun each process has a GPU of its own."""
    device = pick_device(name)
    if device.type == "cuda" and device.index is None and world() > 1:
        return torch.device("cuda", local_rank() % torch.cuda.device_count())
    return device


@contextlib.contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Says where the dump stands when it ends before its time; a full disk is one clear error.

    Errors: ``CacheError`` where the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise CacheError(
            f"disk full at {folder} ({errno.errorcode[error.errno]}, {_FULL[error.errno]}); {_standing(folder)}: "
            "free space and run the same command again"
        ) from error
    except BaseException as error:
        if not isinstance(error, Exception):  # Ctrl-C, SIGTERM
            say(f"stopped; {_standing(folder)}")
        raise


def _standing(folder: Path) -> str:
    try:
        cache = Cache(folder)
        left = sum(block.rows for block in plan(cache, cache.views, cache.manifest.columns))
    except (CacheError, OSError):
        return "nothing had been computed yet"
    total = cache.rows * cache.views
    return f"{total - left:,} of {total:,} keys are in {folder} and stay valid"
