"""Make another cache from a finished one: ``softcache convert``."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import softcache
from softcache.addresses import printable
from softcache.atomic import remove_dead_temporaries
from softcache.cache.chunk_frames import zstandard
from softcache.cache.constants import constants_name
from softcache.cache.description import describe
from softcache.cache.locks import remove_stale_locks, writing
from softcache.cache.manifest import Manifest
from softcache.cache.reader import Cache
from softcache.cache.schema import MANIFEST, ColumnRecord, State, once_per_cache, shard_name
from softcache.cache.writer import MAX_NOTES, KeptSamples, create_or_extend, plan, update_state
from softcache.codecs._open import is_own, option_of, recorded_codec
from softcache.config.convert import ConvertConfig
from softcache.config.folders import make_folder, pick_cache
from softcache.config.given import remember_cache
from softcache.config.options import command
from softcache.console import bar, counted
from softcache.converting.columns import Wanted, matched, wanted_columns
from softcache.converting.fitting import with_constants
from softcache.converting.lost import lost
from softcache.converting.source import Source
from softcache.converting.stream import convert_blocks, own, source_bytes
from softcache.device import pick_device, reproducible
from softcache.dumping.estimate import estimate, refuse_too_large
from softcache.dumping.finish import finish
from softcache.dumping.kept_error import MUCH
from softcache.dumping.signals import Signal
from softcache.errors import CacheError, UsageError
from softcache.localfiles import local_path
from softcache.ragged import Int64
from softcache.remembered import given_before
from softcache.stages._standing import told

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ConvertedColumn:
    """``before``, ``after``: its codec, and how it is compressed if it is; ``bytes_before``, ``bytes_after``: of
    the files of what was converted, shared out to its keys; ``error``: of its codec, as the manifest has it."""

    before: str
    after: str
    bytes_before: int
    bytes_after: int
    error: dict[str, float]


@dataclass(frozen=True)
class Converted:
    """``source`` and the ``folder`` of the new cache; how many ``shards`` were made now, in how many ``seconds``;
    ``bytes_before``, ``bytes_after``: of all files of both. ``info``: what the new cache is."""

    source: Path
    folder: Path
    shards: int
    seconds: float
    bytes_before: int
    bytes_after: int
    columns: dict[str, ConvertedColumn]
    info: dict[str, Any] = field(repr=False)


@command(ConvertConfig)
def convert(asked: ConvertConfig) -> Converted:
    """Makes a cache in ``out`` from the one in ``source``, or what is missing of it: with other codecs, fewer columns
    or views, compressed, or in other shards. The source is only read, and each of its shards checked before it is used.

    Errors: ``UsageError`` for what can't be converted, before anything is written; ``CacheError`` where the source
    isn't complete, where ``out`` holds something else, or the disk is too small; ``IntegrityError`` that names what is
    damaged in the source; ``NumericsError`` with the key for values that don't fit a codec; ``LockedError`` where
    another process writes into ``out``; ``MissingExtraError`` where a column is compressed and zstandard is missing.
    """
    began = time.perf_counter()
    begun = _begin(asked)
    shards = _write(begun)
    if not shards and os.access(begun.out, os.W_OK):
        remove_stale_locks(begun.out)
    return _done(begun, shards, time.perf_counter() - began)


@dataclass(frozen=True)
class _Begun:
    """A conversion that can be done, before anything is written. ``codec``: that of the source that is code, ``named``:
    that of the cache which is made, if they have any. ``labels``, ``names``, ``samples``: what is once a cache."""

    source: Cache
    out: Path
    device: torch.device
    views: int
    wanted: dict[str, Wanted]
    codec: str | None
    named: str | None
    samples: KeptSamples
    labels: np.ndarray
    names: list[str] | None


def _begin(asked: ConvertConfig) -> _Begun:
    folder, out = pick_cache(asked.source, option="SRC"), local_path(asked.out, "OUT")
    device = pick_device(asked.device)
    cache, code = _opened(folder, asked)
    _refuse_in_place(folder, out)
    names, views = asked.kept(cache.manifest, str(folder)), asked.views or cache.views
    _refuse_incomplete(cache, names, views)
    labels = cache.labels  # before memory is taken for as many rows as the manifest says
    inputs = cache.manifest.identity.dataset.inputs
    lengths = {name: cache.lengths(name) for name, given in inputs.items() if given.ragged}
    wanted = wanted_columns(cache, names, asked.codecs, asked.codec, asked.compressions, asked.shard_rows, lengths)
    named = asked.named_codec or code
    existing = Cache(out, codec=named) if (out / MANIFEST).exists() else None
    if existing is not None:
        _refuse_other(existing, cache, views)
        wanted = matched(wanted, existing, folder)
    columns = [column.layout for column in wanted.values()]
    if any(layout.compress for layout in [*columns, *map(cache.layout, names)]):
        zstandard()  # or says now that it is missing
    guess = estimate(cache.manifest.identity, columns, views, out, existing, lengths)
    refuse_too_large(guess, out, "a folder on another disk")
    samples = _samples(cache, lengths)
    return _Begun(cache, out, device, views, wanted, code, named, samples, labels, cache.names)


def _write(begun: _Begun) -> int:
    """Makes what is missing; returns how many shards that were."""
    cache, out, views = begun.source, begun.out, begun.views
    source, recoded = Source(cache, begun.codec), {name: column.recoded for name, column in begun.wanted.items()}
    make_folder(out)
    with told(out), writing(out), reproducible(tf32=False):
        for leftover in remove_dead_temporaries(out):
            log.info(f"removed {leftover.name}: its writer is gone")
        made = create_or_extend(
            out,
            cache.manifest.identity,
            views=views,
            columns=with_constants(out, source, begun.wanted, views),
            made=_made(cache, out),
            class_names=cache.manifest.state.class_names,
            labels=begun.labels,
            names=begun.names,
            samples=begun.samples,
            codec=begun.named,
        )
        _remember(begun, made)
        blocks = [block for block in plan(made, views, made.manifest.columns) if own(block, recoded)]
        shards = sum(name in recoded for block in blocks for name, _ in block.missing)
        log.info(
            f"convert {cache.folder}: {counted(cache.rows, 'row')} × {counted(views, 'view')}, "
            f"{_listed(begun.wanted)}; {shards:,} of {views * sum(map(made.manifest.shards, recoded)):,} shards to make"
        )
        with bar("convert", source_bytes(cache, made, blocks, recoded), "bytes") as shown:
            convert_blocks(source, made, blocks, recoded, begun.device, shown)
        for name in [name for name, anew in recoded.items() if anew]:
            _keep_lost(source, made, name, begun.device)
        top1 = cache.manifest.state.teacher_top1  # of what is nearest to what the teacher said
        if top1 is not None and made.manifest.state.teacher_top1 is None:
            update_state(out, lambda state: dataclasses.replace(state, teacher_top1=top1))
        finish(out, begun.named)
    return shards


def _refuse_in_place(source: Path, out: Path) -> None:
    """Errors: ``UsageError`` where one folder is the other or lies in it, whatever links lead there."""
    here, there = Path(os.path.realpath(source)), Path(os.path.realpath(out))
    within = any(place.exists() and os.path.samefile(place, here) for place in (there, *there.parents))
    around = there.exists() and any(os.path.samefile(place, there) for place in (here, *here.parents))
    if within or around:
        what = "is" if within and around else "lies in" if within else "has in it"
        raise UsageError(
            f"{out} {what} the cache that is converted, {source}, and nothing is converted in place: name a folder "
            "beside it"
        )


def _opened(folder: Path, asked: ConvertConfig) -> tuple[Cache, str | None]:
    """The source, and its codec that is code, if it has one and the user named it, now or before.

    Errors: ``CacheError`` where nobody named it.
    """
    cache, code = Cache(folder), asked.named_codec
    own = {name: record.codec for name, record in cache.manifest.state.columns.items() if is_own(record.codec)}
    if code is not None and recorded_codec(code) in own.values():
        return Cache(folder, codec=code), code
    known = given_before(folder, "codec", cache.manifest.cache_id)
    for name in own if known is None else ():
        if name in asked.kept(cache.manifest, str(folder)):
            codec = option_of(own[name])
            raise CacheError(
                f"{folder} keeps {name} in a codec that is code, {codec}. For safety, softcache runs no code that is "
                f"named only in a cache: if you trust it, name it, {Signal(name, None).option}:codec={codec}, or where "
                "you have it"
            )
    return cache, known


def _refuse_incomplete(cache: Cache, names: Sequence[str], views: int) -> None:
    """Errors: ``CacheError`` that says what to do where a shard is missing of what is converted, and for a codec that
    isn't available or whose constants are damaged."""
    for name in once_per_cache(cache.manifest.state):
        if not (cache.folder / name).exists():
            raise CacheError(f"{cache.folder} is not complete, {name} is missing: run the command again that made it")
    for name in names:
        _ = cache.layout(name).coder
    missing = cache.missing(list(names), views)
    if missing:
        view, name, number = missing[0]
        raise CacheError(
            f"{cache.folder} is not complete, {counted(len(missing), 'shard')} of what would be converted "
            f"{'is' if len(missing) == 1 else 'are'} missing, {shard_name(view, name, number)} first: run the command "
            "again that made it, or convert what is there, with --views, --drop-output or --drop-hint"
        )


def _refuse_other(existing: Cache, source: Cache, views: int) -> None:
    """Errors: ``CacheError`` where a cache is there that this conversion doesn't make."""
    if existing.manifest.cache_id != source.manifest.cache_id:
        raise CacheError(
            f"{existing.folder} is a cache of something else than {source.folder} (cache ids "
            f"{existing.manifest.cache_id[:16]} and {source.manifest.cache_id[:16]}): name another folder"
        )
    if existing.views > views:
        raise CacheError(
            f"{existing.folder} has {existing.views} views, and {views} would be converted: name another folder, or "
            f"take views away with softcache trim {existing.folder} --views {views}"
        )


def _samples(cache: Cache, lengths: Mapping[str, Int64]) -> KeptSamples:
    """What the source keeps of inputs, for the new cache. Errors: ``IntegrityError`` where that is damaged."""
    index, kept = cache.samples
    order = np.argsort(index, kind="stable")

    def made(some: np.ndarray) -> dict[str, np.ndarray | list[np.ndarray]]:
        at = order[np.searchsorted(index[order], some)]
        return {n: [held[k] for k in at] if isinstance(held, list) else held[at] for n, held in kept.items()}

    return KeptSamples(index, cache.manifest.identity.dataset.inputs, made, lengths)


def _made(source: Cache, out: Path) -> dict[str, Any]:
    """How the source was made, and a note of this command; of a cache that is there what it says already."""
    if (out / MANIFEST).exists():
        made = Manifest.load(out).state.made
        return {**made, **(made.get("later") or [{}])[-1]}
    made = source.manifest.state.made
    note = {
        "softcache": softcache.__version__,
        "command": " ".join([Path(sys.argv[0]).name, *map(printable, sys.argv[1:])]),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    return {**made, "later": [*made.get("later", []), note][-MAX_NOTES:]}


def _remember(begun: _Begun, made: Cache) -> None:
    """What the user gave for the source holds for what is made of it, which has the same identity."""
    source = begun.source
    remember_cache(source, codec=begun.codec)
    roles = ("dataset", "teacher", "augment")
    known = {role: given_before(source.folder, role, source.manifest.cache_id) for role in roles}
    remember_cache(made, codec=begun.named, **known)


def _keep_lost(source: Source, made: Cache, name: str, device: torch.device) -> None:
    """Writes into the manifest what a column's codec has lost."""
    found = lost(source, made, name, device)
    if found is None or not found.error or not all(map(np.isfinite, found.error.values())):
        return
    error, much = {**found.error, "keys": float(found.keys)}, found.error.get("relative_error_mean", 0.0)
    if much > MUCH:
        log.warning(
            f"{name}: its codec loses {much:.0%} of what {source.cache.folder} says (relative error, mean of "
            f"{found.keys:,} keys): convert it to more bits, such as fp16, in another folder"
        )

    def with_error(state: State) -> State:
        record = dataclasses.replace(state.columns[name], error=error)
        return dataclasses.replace(state, columns={**state.columns, name: record})

    update_state(made.folder, with_error)


def _listed(wanted: Mapping[str, Wanted]) -> str:
    codecs = {name: option_of(column.record.codec) for name, column in wanted.items()}
    return ", ".join(f"{name} {'in' if c.recoded else 'as it is in'} {codecs[name]}" for name, c in wanted.items())


def _kept_as(record: ColumnRecord) -> str:
    """``fp16 zstd:level=1,rows=256,shuffle=byte``."""
    return option_of(record.codec) + ("" if record.compress is None else f" {record.compress}")


def _key_bytes(cache: Cache, name: str, views: int) -> int:
    """What the files of a column take of these views, shared out to their keys."""
    shards = [cache.shard_path(v, name, k) for v in range(views) for k in range(cache.manifest.shards(name))]
    constants = [cache.folder / constants_name(name)] if cache.manifest.state.columns[name].constants else []
    return round(sum(path.stat().st_size for path in [*shards, *constants]) / (cache.rows * views))


def _done(begun: _Begun, shards: int, seconds: float) -> Converted:
    source, made, columns = begun.source, Cache(begun.out, codec=begun.named), {}
    for name in begun.wanted:
        before, after = source.manifest.state.columns[name], made.manifest.state.columns[name]
        columns[name] = ConvertedColumn(
            _kept_as(before),
            _kept_as(after),
            _key_bytes(source, name, begun.views),
            _key_bytes(made, name, begun.views),
            after.error,
        )
    info, size = describe(made), describe(source)["bytes"]
    return Converted(source.folder, made.folder, shards, seconds, size, info["bytes"], columns, info)
