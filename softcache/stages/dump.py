"""Run the teacher once per key: ``softcache dump``."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from softcache.addresses import is_address
from softcache.atomic import dead_temporaries
from softcache.cache.agreement.recorded import Recorded
from softcache.cache.description import describe
from softcache.cache.locks import remove_stale_locks, writing
from softcache.cache.reader import Cache
from softcache.cache.uploading import uploading_of
from softcache.cache.virtual import is_current
from softcache.config.dump import DumpConfig
from softcache.config.folders import make_folder
from softcache.config.options import command
from softcache.device import pick_device, reproducible
from softcache.distributed import local_rank, rank, world
from softcache.dumping.estimate import Estimate, refuse_too_large, timed
from softcache.dumping.finish import finish
from softcache.dumping.kept_error import refuse_broken
from softcache.dumping.ray_cluster import connected
from softcache.dumping.spent import keep_spent
from softcache.errors import LockedError, UsageError
from softcache.stages._dumping import (
    Opened,
    begin,
    check,
    compute,
    decided,
    estimated,
    open_dump,
    prepare,
    remember_dump,
    remove_leftovers,
    tell_waited,
)
from softcache.stages._measured import keeping_errors
from softcache.stages._on_ray import Shared, dump_on_ray
from softcache.stages._standing import told
from softcache.stages._to_store import announce, writing_to_store
from softcache.store.store import Store


@dataclass
class Dumped:
    """The cache's folder, keys computed now, seconds spent in this call, the teacher's top-1 on the labels, and how
    many ``views`` were asked for: the cache may have been asked for more before. ``shared``: who computed, of a dump
    on a cluster."""

    folder: Path
    keys: int
    seconds: float
    teacher_top1: float | None = None
    views: int = 0
    info: dict[str, Any] = field(default_factory=dict)
    estimate: Estimate | None = None
    shared: Shared | None = None


@command(DumpConfig)
def dump(asked: DumpConfig) -> Dumped:
    """Computes what is missing of a cache and says what it then is.

    Errors: ``CacheError`` where ``out`` holds a cache of another identity, its teacher now says something else, or the
    disk is too small; ``LockedError`` where another process writes the same part; ``NumericsError`` with the key for
    logits that are not finite or don't fit the codec, and where what a codec loses is more than ``auto`` may; with
    ``on`` those of ``dump_on_ray``.
    """
    began = time.perf_counter()
    part = _part(asked)
    if asked.out is not None and is_address(asked.out):
        return _dump_to_store(asked, part)
    return _dump(asked, part, began)


def _dump_to_store(asked: DumpConfig, part: tuple[int, int]) -> Dumped:
    began = time.perf_counter()
    if part != (1, 1) or asked.on is not None:
        raise UsageError("one process at a time dumps into a store: dump parts into a folder, and softcache copy it")
    with writing_to_store(asked) as (here, goal):
        done = _dump(here, part, began)
        if asked.dry_run:
            return dataclasses.replace(
                done, info={"path": goal.store.where}, estimate=_in_store(done.estimate, goal.store)
            )
        pin = goal.finish(here.named_codec)
        info = describe(Cache(done.folder, codec=here.named_codec))  # now that all of it is stored
    return dataclasses.replace(done, info={**info, "pin": pin})


def _in_store(guess: Estimate | None, store: Store) -> Estimate | None:
    """The estimate of a dump into a store, by what lies there: this machine's disk keeps a few shards for a while."""
    stored = sum(count for name, count in store.files().items() if name.endswith(".h5"))
    return guess and dataclasses.replace(guess, existing=stored, free=None)


def _dump(asked: DumpConfig, part: tuple[int, int], began: float) -> Dumped:
    if asked.on is not None:
        return _dump_on_ray(asked, began)
    device = _device(asked.device)
    begun = begin(asked, device.type)
    if begun.whole and not asked.dry_run:
        return _done(begun.folder, begun.config, began)
    opened = open_dump(begun, device, divided=part != (1, 1))
    if opened is None:
        return _done(begun.folder, begun.config, began)
    if asked.dry_run:
        opened, _ = decided(opened)
        guess = estimated(opened)
        with reproducible(tf32=opened.identity.teacher.numerics.tf32):
            guess = timed(guess, opened.forward, begun.viewed, opened.identity.grid, asked.workers)
        return Dumped(begun.folder, 0, time.perf_counter() - began, estimate=guess)
    if uploading_of(begun.folder) is None:
        refuse_too_large(estimated(opened), begun.folder)
    make_folder(begun.folder)
    with told(begun.folder), writing(begun.folder, part):
        keys = _compute(opened, part)
        finish(begun.folder, begun.config.named_codec)
        refuse_broken(begun.folder, begun.bounds)
    return _done(begun.folder, begun.config, began, keys)


def _dump_on_ray(asked: DumpConfig, began: float) -> Dumped:
    """Actors open the teacher and compute, this process does the rest."""
    with connected(asked.device, torch.get_num_threads()) as cluster:
        begun = begin(asked, cluster.device)
        if begun.whole:
            return _done(begun.folder, begun.config, began)
        new = not begun.folder.exists()
        make_folder(begun.folder)
        try:
            with told(begun.folder), writing(begun.folder):
                started = time.perf_counter()
                shared = dump_on_ray(cluster, asked, begun.folder, begun.bounds)
                keep_spent(begun.folder, shared.keys, shared.actors * (time.perf_counter() - started))
                finish(begun.folder, begun.config.named_codec)
                refuse_broken(begun.folder, begun.bounds)
        except BaseException:
            if new:
                with contextlib.suppress(OSError):  # there is something in it
                    begun.folder.rmdir()
            raise
    done = _done(begun.folder, begun.config, began, shared.keys)
    return dataclasses.replace(done, shared=shared if shared.keys else None)


def _compute(opened: Opened, part: tuple[int, int]) -> int:
    """Computes this part's missing shards; returns how many keys that were."""
    cache, blocks = prepare(opened, part)
    keys = sum(block.rows for block in blocks)
    if cache.uploading is not None:
        announce(cache)
    if blocks:
        recorded = Recorded(cache)
        check(opened, cache, recorded)
        bounds = opened.begun.bounds
        began = time.perf_counter()
        waited = compute(opened, cache, blocks, recorded, measured=keeping_errors(cache, bounds))
        keep_spent(cache.folder, keys, time.perf_counter() - began)
        tell_waited(cache, blocks, waited)
    return keys


def _done(folder: Path, config: DumpConfig, began: float, keys: int = 0) -> Dumped:
    cache = Cache(folder, codec=config.named_codec)
    remember_dump(cache, config)
    if not keys and os.access(folder, os.W_OK):
        remove_stale_locks(folder)
        if dead_temporaries(folder) or not is_current(cache):
            # a dump was killed between its last shard and its end
            with contextlib.ExitStack() as held:
                try:
                    held.enter_context(writing(folder, _part(config)))
                except LockedError:  # another is at work, which does this then
                    pass
                else:
                    with told(folder):
                        remove_leftovers(folder)
                        finish(folder, config.named_codec)
            cache = Cache(folder, codec=config.named_codec)
    return Dumped(
        folder,
        keys,
        time.perf_counter() - began,
        cache.manifest.state.teacher_top1,
        config.views or cache.views,
        describe(cache),
    )


def _part(config: DumpConfig) -> tuple[int, int]:
    """The share of the work that was asked for; under torchrun each process has its own."""
    option = "--part" if config.part is not None else "--on ray" if config.on is not None else None
    if option is not None and world() > 1:
        raise UsageError(f"{option} and torchrun both divide the work: use one of them")
    return config.part or (rank() + 1, world())


def _device(name: str) -> torch.device:
    """Under torchrun each process has a GPU of its own."""
    device = pick_device(name)
    if device.type == "cuda" and device.index is None and world() > 1:
        return torch.device("cuda", local_rank() % torch.cuda.device_count())
    return device
