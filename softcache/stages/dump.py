"""Run the teacher once per key: ``softcache dump``."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from softcache.atomic import dead_temporaries, remove_dead_temporaries, why_full
from softcache.cache.agreement.identity import refuse_other
from softcache.cache.agreement.labels import refuse_relabelled
from softcache.cache.agreement.recorded import Recorded
from softcache.cache.agreement.samples import check_pixels
from softcache.cache.constants import constants_name
from softcache.cache.locks import remove_stale_locks, writing
from softcache.cache.reader import Cache
from softcache.cache.schema import (
    MANIFEST,
    ROWS,
    SAMPLES,
    ColumnRecord,
    Identity,
    State,
)
from softcache.cache.virtual import is_current
from softcache.cache.writer import create_or_extend, plan, update_state
from softcache.config.dump import DEFAULTS, DumpConfig, default_views
from softcache.config.folders import cache_folder, make_folder
from softcache.config.given import remember_cache
from softcache.config.options import command
from softcache.config.teachers import default_data, find_teacher, known_folder, teacher_source
from softcache.console import advising, counted
from softcache.datasets._open import open_samples
from softcache.device import DTYPES, pick_device, reproducible
from softcache.distributed import local_rank, rank, world
from softcache.dumping.batch_size import pick_batch
from softcache.dumping.columns import columns_to_keep, is_kept, layouts, listed, wanted_signals
from softcache.dumping.constants import with_constants
from softcache.dumping.estimate import Estimate, estimate, refuse_too_large, timed
from softcache.dumping.finish import finish
from softcache.dumping.forward import Forward
from softcache.dumping.identity import (
    data_fingerprint,
    default_batch,
    identify,
    known_identity,
    provenance,
    same_kind,
    weights_fingerprint,
)
from softcache.dumping.pipeline import run_blocks
from softcache.dumping.prepare import check_teacher, kept_samples, samples_to_keep
from softcache.dumping.signals import Signal
from softcache.errors import CacheError, LockedError, SoftcacheError, UsageError
from softcache.inputs import bucket_input
from softcache.localfiles import local_path
from softcache.models._arithmetic import Arithmetic, pick_arithmetic
from softcache.models._network import Network
from softcache.views._open import Viewed, view_samples

log = logging.getLogger(__name__)

MUCH = 0.05  # of the size of a signal, that a codec loses of it without being worth a warning


@dataclass
class Dumped:
    """The cache's folder, keys computed now, seconds spent in this call, the teacher's top-1 on the labels, and how
    many ``views`` were asked for: the cache may have been asked for more before."""

    folder: Path
    keys: int
    seconds: float
    teacher_top1: float | None = None
    views: int = 0
    info: dict[str, Any] = field(default_factory=dict)
    estimate: Estimate | None = None


@command(DumpConfig)
def dump(asked: DumpConfig) -> Dumped:
    """Computes what is missing of a cache and says what it then is.

    Errors: ``CacheError`` where ``out`` holds a cache of another identity, its teacher now says something else, or the
    disk is too small; ``LockedError`` where another process writes the same part; ``NumericsError`` with the key for
    logits that are not finite or don't fit the codec.
    """
    began = time.perf_counter()
    dry_run = asked.dry_run
    part = _part(asked)
    out = None if asked.out is None else local_path(asked.out, "--out")
    dataset, size = default_data(asked.teacher, asked.dataset, asked.size)
    samples = open_samples(dataset, asked.split, data_dir=asked.data_dir, download=bool(asked.download))
    folder = out or cache_folder(asked.teacher, samples.spec, asked.split)
    existing = Cache(folder, codec=asked.named_codec) if (folder / MANIFEST).exists() else None
    asked = dataclasses.replace(asked, dataset=dataset, size=asked.size if existing else size)
    config = asked.settled(existing)
    viewed = view_samples(samples, config.augment, seed=config.view_seed or 0, size=config.size)
    samples_kept = samples_to_keep(viewed, config.keep_samples, existing.manifest if existing else None)
    device = _device(config.device)
    same_kind(existing.manifest if existing else None, device)
    if config.bucket:
        bucket_input(viewed.inputs, samples.spec)  # refuses it before a teacher is read
    full = config.fingerprint == "full"
    signals = wanted_signals(config.signals, existing, outputs_named=bool(config.output), label_kind=samples.label_kind)
    if existing:
        existing.check_codecs()
        if (folder / ROWS).exists():  # verify --repair takes it away where it is damaged
            refuse_relabelled(existing, samples)
        spec, named = teacher_source(config.teacher, samples, config.teacher_weights)
        known = known_identity(
            viewed,
            spec,
            named,
            config.numerics(device.type),
            normalize=config.normalize,
            size=config.teacher_size,
            full=full,
            batch=config.batch_size or default_batch(viewed, device.type),
            block_rows=config.shard_rows,
            bucket=bool(config.bucket),
        )
        if known:
            refuse_other(existing.manifest.identity, known, folder)
            if not dry_run and _is_whole(existing, config, signals, samples_kept):
                return _done(folder, config, began)
    network = find_teacher(
        config.teacher,
        samples,
        weights=config.teacher_weights,
        normalize=config.normalize,
        size=config.teacher_size,
    )
    weights = weights_fingerprint(network, keep=not dry_run)  # before its dtype changes
    arithmetic = pick_arithmetic(
        network,
        viewed.clean(np.arange(2) % len(viewed)),
        config.batch_size or default_batch(viewed, device.type),
        device,
        amp=config.amp or "auto",
        channels_last=config.channels_last,
        dtype=config.dtype or "float32",
    )
    config = dataclasses.replace(config, amp=arithmetic.amp, channels_last=arithmetic.channels_last)
    held = existing.manifest.columns if existing else []
    columns = list(dict.fromkeys([*held, *(signal.column for signal in signals)]))
    batch = config.batch_size or _batch(config, network, viewed, device, arithmetic, columns)
    data = data_fingerprint(samples, full=full, keep=not dry_run)
    identity = identify(
        network,
        weights,
        data,
        viewed,
        config.numerics(device.type),
        batch=batch,
        block_rows=config.shard_rows,
        bucket=bool(config.bucket),
    )
    if existing:
        refuse_other(existing.manifest.identity, identity, folder)
        if not dry_run and _is_whole(existing, config, signals, samples_kept):
            return _done(folder, config, began)
        if (folder / SAMPLES).exists():  # verify --repair takes it away where it is damaged
            now = Cache(folder)  # as it is now: another part may have kept more samples meanwhile
            now.known_lengths.update(viewed.lengths())  # verify --repair takes away those of rows.h5 too
            check_pixels(now, viewed)
    views = config.views or (existing.views if existing else default_views(viewed.recipe))
    network = arithmetic.apply(network.to(device, DTYPES[identity.teacher.numerics.dtype])).eval()
    forward = Forward(
        network,
        columns,
        device,
        amp=identity.teacher.numerics.amp,
        compiled=identity.teacher.numerics.compile,
    )
    with reproducible(tf32=identity.teacher.numerics.tf32):
        records = columns_to_keep(
            forward, viewed, signals, config.codec, identity, existing.manifest if existing else None
        )
        kept = layouts(records, signals, config.codec, existing)
        guess = estimate(identity, kept, views, folder, existing, viewed.lengths())
        if dry_run:
            guess = timed(guess, forward, viewed, identity.grid, config.workers)
            return Dumped(folder, 0, time.perf_counter() - began, estimate=guess)
        refuse_too_large(guess, folder)
        make_folder(folder)
        with _told(folder), writing(folder, part):
            records = with_constants(folder, identity, viewed, forward, records, kept, views)
            keys = _compute(folder, identity, viewed, forward, records, views, samples_kept, config)
            finish(folder, config.named_codec)
    return _done(folder, config, began, keys)


def _compute(
    folder: Path,
    identity: Identity,
    viewed: Viewed,
    forward: Forward,
    columns: dict[str, ColumnRecord],
    views: int,
    samples_kept: int,
    config: DumpConfig,
) -> int:
    """Computes this part's missing shards; returns how many keys that were."""
    _remove_leftovers(folder)
    held = Cache(folder, codec=config.named_codec) if (folder / MANIFEST).exists() else None
    if held is not None:
        held.known_lengths.update(viewed.lengths())
    cache = create_or_extend(
        folder,
        identity,
        views=views,
        columns=columns,
        made=provenance(
            viewed,
            forward.device,
            teacher=_found_from_everywhere(config.teacher),
            teacher_weights=config.teacher_weights,
            fingerprint=config.fingerprint or DEFAULTS["fingerprint"],
        ),
        class_names=viewed.samples.classes,
        labels=viewed.samples.labels,
        names=viewed.samples.names,
        samples=kept_samples(viewed, samples_kept, held),
        codec=config.named_codec,
    )
    _remember(cache, config)
    held_columns = cache.manifest.columns
    blocks = plan(cache, views, held_columns, _part(config))
    # Where the first column is there already, the teacher's answer is compared with it.
    wanted = {column for block in blocks for column in block.columns} | set(held_columns[:1])
    forward.ask([column for column in held_columns if column in wanted])
    keys = sum(block.rows for block in blocks)
    log.info(
        f"dump {forward.network.spec} on {config.dataset}/{config.split}: "
        f"{counted(cache.rows, 'row')} × {counted(views, 'view')}, "
        f"recipe {viewed.recipe}, {listed(cache)}, on {forward.device}; "
        f"{keys:,} of {cache.rows * views:,} keys to compute"
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
            measured=functools.partial(_measured, folder),
        )
    return keys


def _is_whole(cache: Cache, config: DumpConfig, signals: Sequence[Signal], samples_kept: int) -> bool:
    """Whether all that is asked for is there, by the folders' listings alone."""
    state, views = cache.manifest.state, config.views or cache.views
    return (
        views <= state.views
        and samples_kept <= state.samples
        and all(is_kept(state, signal, config.codec) for signal in signals)
        and all((cache.folder / name).exists() for name in (ROWS, SAMPLES))
        and all((cache.folder / constants_name(n)).exists() for n, column in state.columns.items() if column.constants)
        and not cache.missing(cache.manifest.columns, views)
    )


def _done(folder: Path, config: DumpConfig, began: float, keys: int = 0) -> Dumped:
    cache = Cache(folder, codec=config.named_codec)
    _remember(cache, config)
    if not keys and os.access(folder, os.W_OK):
        remove_stale_locks(folder)
        if dead_temporaries(folder) or not is_current(cache):
            # a dump was killed between its last shard and its end; or another is at work, which does this then
            with contextlib.suppress(LockedError), _told(folder), writing(folder, _part(config)):
                _remove_leftovers(folder)
                finish(folder, config.named_codec)
            cache = Cache(folder, codec=config.named_codec)
    return Dumped(
        folder,
        keys,
        time.perf_counter() - began,
        cache.manifest.state.teacher_top1,
        config.views or cache.views,
        cache.describe(),
    )


def _found_from_everywhere(teacher: str) -> str:
    """A teacher's spec; a folder of one by its whole path."""
    folder = known_folder(teacher)
    return teacher if folder is None else str(folder.absolute())


def _remember(cache: Cache, config: DumpConfig) -> None:
    """All of these were opened by now: the user gave them, now or before."""
    teacher = _found_from_everywhere(config.teacher)
    remember_cache(cache, dataset=config.dataset, teacher=teacher, augment=config.augment, codec=config.named_codec)


def _remove_leftovers(folder: Path) -> None:
    for leftover in remove_dead_temporaries(folder):
        log.info(f"removed {leftover.name}: its writer is gone")


def _measured(folder: Path, column: str, error: dict[str, float], keys: int) -> None:
    lost = error.get("relative_error_mean", 0.0)
    if lost > MUCH:
        log.warning(
            f"{column}: its codec loses {lost:.0%} of what the teacher says (relative error, mean of {keys:,} keys): "
            "keep it in fp16, bf16 or fp32, after softcache trim has taken it away"
        )
    update_state(folder, lambda state: _with_error(state, column, error, keys))


def _with_error(state: State, column: str, error: dict[str, float], keys: int) -> State:
    """A codec's error on as many keys as any dump into this cache has measured it on."""
    record = state.columns.get(column)
    if record is None or keys <= record.error.get("keys", 0):  # a trim may have taken it away
        return state
    measured = dataclasses.replace(record, error={**error, "keys": float(keys)})
    return dataclasses.replace(state, columns={**state.columns, column: measured})


def _batch(
    config: DumpConfig,
    network: Network,
    viewed: Viewed,
    device: torch.device,
    arithmetic: Arithmetic,
    columns: Sequence[str],
) -> int:
    """Rows of a forward pass where nobody says: on a GPU they are found by trying.

    They become part of the cache's identity. Processes that share a dump must agree on them without asking each other,
    so those take the default; so does a compiled network, which would be compiled for each size.
    """
    if device.type != "cuda" or _part(config) != (1, 1) or config.compile:
        return default_batch(viewed, device.type)
    return pick_batch(
        network,
        viewed,
        device,
        dtype=config.dtype or "float32",
        arithmetic=arithmetic,
        columns=columns,
    )


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
        with advising(lambda: f"{_standing(folder)}: run the same command again to go on"):
            yield
    except OSError as error:
        why = why_full(error)
        if why is None:
            raise
        raise CacheError(
            f"disk full at {folder} ({why}); {_standing(folder)}: free space and run the same command again"
        ) from error


def _standing(folder: Path) -> str:
    try:
        cache = Cache(folder)
        left = sum(block.rows for block in plan(cache, cache.views, cache.manifest.columns))
    except (SoftcacheError, OSError):
        return "nothing had been computed yet"
    total = cache.rows * cache.views
    return f"{total - left:,} of {total:,} keys are in {folder} and stay valid"
