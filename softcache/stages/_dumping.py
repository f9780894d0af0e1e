"""What every dump does, alone or in an actor of a cluster: it opens data and teacher, prepares the cache, computes."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from softcache.atomic import remove_dead_temporaries
from softcache.cache.agreement.identity import refuse_other
from softcache.cache.agreement.labels import refuse_relabelled
from softcache.cache.agreement.recorded import Recorded, comparable
from softcache.cache.agreement.samples import check_pixels
from softcache.cache.chunk_frames import zstandard
from softcache.cache.column import Column
from softcache.cache.constants import constants_name
from softcache.cache.locks import fitting
from softcache.cache.manifest import Manifest
from softcache.cache.reader import Cache
from softcache.cache.schema import MANIFEST, ROWS, SAMPLES, ColumnRecord, Identity, once_per_cache
from softcache.cache.uploading import uploading_of
from softcache.cache.writer import Block, create_or_extend, plan
from softcache.config.dump import DEFAULTS, DumpConfig, default_views
from softcache.config.folders import cache_folder
from softcache.config.given import remember_cache
from softcache.config.teachers import default_data, find_teacher, known_folder, teacher_source
from softcache.console import counted
from softcache.datasets._open import open_samples
from softcache.device import DTYPES, reproducible
from softcache.dumping.batch_size import pick_batch
from softcache.dumping.bound import Bound, bounds_of
from softcache.dumping.choosing import chosen
from softcache.dumping.codec_error import Told
from softcache.dumping.columns import columns_to_keep, is_kept, layouts, listed, refuse_converted, wanted_signals
from softcache.dumping.constants import with_constants
from softcache.dumping.drawn import Said
from softcache.dumping.estimate import Estimate, estimate, refuse_too_large
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
from softcache.dumping.pipeline import Progress, run_blocks
from softcache.dumping.prepare import check_teacher, kept_samples, samples_to_keep
from softcache.dumping.signals import UNCOMPRESSED, Signal
from softcache.dumping.smaller import advice
from softcache.dumping.waiting import Waited
from softcache.inputs import bucket_input
from softcache.localfiles import local_path
from softcache.models._arithmetic import Arithmetic, pick_arithmetic
from softcache.models._network import Network
from softcache.models._takes import refuse_other_inputs
from softcache.views._open import Viewed, view_samples

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Begun:
    """A dump whose dataset is open, and whose teacher is not.

    ``config``: with every choice made that needs no teacher. ``existing``: the cache as it was found, if there is one.
    ``whole``: whether nothing is left to do, as far as that can be known without the teacher's parameters.
    """

    config: DumpConfig
    folder: Path
    viewed: Viewed
    existing: Cache | None
    samples_kept: int
    signals: list[Signal]
    whole: bool

    @property
    def bounds(self) -> dict[str, Bound]:
        """What columns may lose, of those asked for by ``--codec auto``."""
        return bounds_of(self.signals, self.config.codec)


@dataclass(frozen=True)
class Opened:
    """A dump whose teacher is there too, and that hasn't written anything.

    ``records``: the columns that the cache is to have, without the constants of those that are new; ``columns``: how
    they lie on disk. ``undecided``: those whose codec is still to be chosen. ``views``: how many the cache is to have.
    """

    begun: Begun
    config: DumpConfig
    identity: Identity
    forward: Forward
    records: dict[str, ColumnRecord]
    columns: list[Column]
    undecided: dict[str, Bound]
    views: int


def begin(asked: DumpConfig, device: str) -> Begun:
    """Opens the dataset and the cache that is there. ``device``: the kind that the teacher will run on.

    Errors: ``CacheError`` where the folder holds a cache of another identity, as far as that is known by now.
    """
    out = None if asked.out is None else local_path(asked.out, "--out")
    dataset, size = default_data(asked.teacher, asked.dataset, asked.size)
    samples = open_samples(dataset, asked.split, data_dir=asked.data_dir, download=bool(asked.download))
    folder = out or cache_folder(asked.teacher, samples.spec, asked.split)
    existing = Cache(folder, codec=asked.named_codec) if (folder / MANIFEST).exists() else None
    asked = dataclasses.replace(asked, dataset=dataset, size=asked.size if existing else size)
    config = asked.settled(existing)
    held = existing.manifest.state.columns.values() if existing else ()
    if not config.dry_run and (set(config.compressions.values()) - {UNCOMPRESSED} or any(c.compress for c in held)):
        zstandard()  # refused before a teacher has run
    viewed = view_samples(samples, config.augment, seed=config.view_seed or 0, size=config.size)
    samples_kept = samples_to_keep(viewed, config.keep_samples, existing.manifest if existing else None)
    same_kind(existing.manifest if existing else None, device)
    if config.bucket:
        bucket_input(viewed.inputs, samples.spec)  # refuses it before a teacher is read
    signals = wanted_signals(config.signals, existing, outputs_named=bool(config.output), label_kind=samples.label_kind)
    whole = False
    if existing:
        existing.check_codecs()
        if (folder / ROWS).exists():  # verify --repair takes it away where it is damaged
            refuse_relabelled(existing, samples)
        spec, named = teacher_source(config.teacher, samples, config.teacher_weights)
        known = known_identity(
            viewed,
            spec,
            named,
            config.numerics(device),
            normalize=config.normalize,
            size=config.teacher_size,
            full=config.fingerprint == "full",
            batch=config.batch_size or default_batch(viewed, device),
            block_rows=config.shard_rows,
            bucket=bool(config.bucket),
        )
        if known:
            refuse_other(existing.manifest.identity, known, existing.where)
            whole = _is_whole(existing, config, signals, samples_kept)
    return Begun(config, folder, viewed, existing, samples_kept, signals, whole)


def open_dump(begun: Begun, device: torch.device, *, divided: bool) -> Opened | None:
    """Opens the teacher and compares what the cache is with what is asked for; None where nothing is left to do.

    ``divided``: whether other processes do the same beside this one, and have to come to the same batch size.

    Errors: ``CacheError`` where the folder holds a cache of another identity, ``PixelsError`` where the cache's kept
    samples are other than the dataset's.
    """
    config, folder, viewed, existing = begun.config, begun.folder, begun.viewed, begun.existing
    samples, dry_run = viewed.samples, config.dry_run
    network = find_teacher(
        config.teacher, samples, weights=config.teacher_weights, normalize=config.normalize, size=config.teacher_size
    )
    weights = weights_fingerprint(network, keep=not dry_run)  # before its dtype changes
    some = viewed.clean(np.arange(2) % len(viewed))
    # A cache that is there shows that it can; and parameters in another dtype may not fit the device as they are.
    if existing is None and config.dtype in (None, "float32"):
        refuse_other_inputs(
            network.to(device), some.to(device), viewed.inputs, samples.spec, "--dataset", tf32=bool(config.tf32)
        )
    arithmetic = pick_arithmetic(
        network,
        some,
        config.batch_size or default_batch(viewed, device.type),
        device,
        amp=config.amp or "auto",
        channels_last=config.channels_last,
        dtype=config.dtype or "float32",
    )
    config = dataclasses.replace(config, amp=arithmetic.amp, channels_last=arithmetic.channels_last)
    held = existing.manifest.columns if existing else []
    columns = list(dict.fromkeys([*held, *(signal.column for signal in begun.signals)]))
    batch = config.batch_size or _batch(config, network, viewed, device, arithmetic, columns, divided)
    data = data_fingerprint(samples, full=config.fingerprint == "full", keep=not dry_run)
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
        refuse_other(existing.manifest.identity, identity, existing.where)
        if not dry_run and _is_whole(existing, config, begun.signals, begun.samples_kept):
            return None
        if (folder / SAMPLES).exists():  # verify --repair takes it away where it is damaged
            now = Cache(folder)  # as it is now: another part may have kept more samples meanwhile
            now.known_lengths.update(viewed.lengths())  # verify --repair takes away those of rows.h5 too
            check_pixels(now, viewed)
    views = config.views or (existing.views if existing else default_views(viewed.recipe))
    if existing:
        refuse_converted(existing, views)
    numerics = identity.teacher.numerics
    network = arithmetic.apply(network.to(device, DTYPES[numerics.dtype])).eval()
    forward = Forward(network, columns, device, amp=numerics.amp, compiled=numerics.compile)
    with reproducible(tf32=numerics.tf32):
        grid = identity.grid
        records = columns_to_keep(
            forward, viewed, begun.signals, config.codec, grid.block_rows, existing, config.compressions
        )
    kept = layouts(records, begun.signals, config.codec, existing)
    undecided = {name: bound for name, bound in begun.bounds.items() if name not in held}
    return Opened(begun, config, identity, forward, records, kept, undecided, views)


def estimated(opened: Opened) -> Estimate:
    """How much space the dump will take, without speeds; without columns whose codec is still to be chosen."""
    begun, columns = opened.begun, [column for column in opened.columns if column.name not in opened.undecided]
    return estimate(opened.identity, columns, opened.views, begun.folder, begun.existing, begun.viewed.lengths())


def decided(opened: Opened) -> tuple[Opened, dict[str, Said]]:
    """The same dump when codecs have been chosen, or another process has written into the manifest what it chose; and
    what the teacher says of the keys that this was found out with."""
    if not opened.undecided:
        return opened, {}
    begun, identity, config = opened.begun, opened.identity, opened.config
    folder, forward, views = begun.folder, opened.forward, opened.views
    there = Manifest.load(folder).state.columns if (folder / MANIFEST).exists() else {}
    records = opened.records | {name: there[name] for name in opened.undecided if name in there}
    still = {name: bound for name, bound in opened.undecided.items() if name not in there}
    with reproducible(tf32=identity.teacher.numerics.tf32):
        records, said = chosen(identity, begun.viewed, forward, records, still, views, config.compressions)
    columns = layouts(records, begun.signals, config.codec, begun.existing)
    return dataclasses.replace(opened, records=records, columns=columns, undecided={}), said


def prepare(opened: Opened, part: tuple[int, int] = (1, 1)) -> tuple[Cache, list[Block]]:
    """The cache, made or extended, whose folder is there and held by ``writing``; and the blocks of a share of what is
    missing. Codecs are chosen where that is asked for, and fitted where they have constants.

    Errors: ``CacheError`` where what is to be written in chosen codecs doesn't fit on the disk.
    """
    config, identity, forward = opened.config, opened.identity, opened.forward
    folder, viewed, views = opened.begun.folder, opened.begun.viewed, opened.views
    with contextlib.ExitStack() as stack:
        # Until the manifest has what is chosen and fitted here, nobody else begins to choose or fit.
        if opened.undecided or any(column.has_constants for column in opened.columns):
            stack.enter_context(fitting(folder))
        opened, said = decided(opened)
        if said and uploading_of(folder) is None:  # shards in a store wait here for a short while
            refuse_too_large(estimated(opened), folder)
        with reproducible(tf32=identity.teacher.numerics.tf32):
            records = with_constants(folder, identity, viewed, forward, opened.records, opened.columns, views, said)
        remove_leftovers(folder)
        held = Cache(folder, codec=config.named_codec) if (folder / MANIFEST).exists() else None
        if held is not None:
            held.known_lengths.update(viewed.lengths())
        cache = create_or_extend(
            folder,
            identity,
            views=views,
            columns=records,
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
            samples=kept_samples(viewed, opened.begun.samples_kept, held),
            codec=config.named_codec,
        )
    remember_dump(cache, config)
    blocks = plan(cache, views, cache.manifest.columns, part)
    keys = sum(block.rows for block in blocks)
    log.info(
        f"dump {forward.network.spec} on {config.dataset}/{config.split}: "
        f"{counted(cache.rows, 'row')} × {counted(views, 'view')}, "
        f"recipe {viewed.recipe}, {listed(cache)}, on {forward.device}; "
        f"{keys:,} of {cache.rows * views:,} keys to compute"
    )
    return cache, blocks


def check(opened: Opened, cache: Cache, recorded: Recorded) -> None:
    """Computes a few keys that are there again. Errors: as ``check_teacher``."""
    with reproducible(tf32=opened.identity.teacher.numerics.tf32):
        check_teacher(cache, opened.begun.viewed, opened.forward, recorded)


def compute(
    opened: Opened,
    cache: Cache,
    blocks: Sequence[Block],
    recorded: Recorded,
    *,
    measured: Told,
    progress: Progress | None = None,
) -> Waited:
    """Computes and commits blocks. ``recorded``, ``measured``, ``progress`` and the result: as ``run_blocks`` has
    them."""
    # Where the first column that can be compared is there already, the teacher's answer is compared with it.
    wanted = {column for block in blocks for column in block.columns} | set(comparable(cache)[:1])
    columns = [column for column in cache.manifest.columns if column in wanted]
    if columns != opened.forward.columns:  # a compiled network is compiled anew for what is asked of it
        opened.forward.ask(columns)
    with reproducible(tf32=opened.identity.teacher.numerics.tf32):
        return run_blocks(
            cache,
            opened.begun.viewed,
            opened.forward,
            blocks,
            workers=opened.config.workers,
            recorded=recorded,
            measured=measured,
            progress=progress,
        )


def tell_waited(cache: Cache, blocks: Sequence[Block], waited: Waited) -> None:
    """Says at the end of a dump what would let the teacher wait less, where it waited much for the disk."""
    if not waited.notable:
        return
    names = [name for name in cache.manifest.columns if any(name in block.columns for block in blocks)]
    columns = [cache.layout(name) for name in names]
    places = {column.name: int(cache.places(column.name).sum()) for column in columns if column.ragged}
    log.info(advice(waited, columns, cache.rows, places))


def remember_dump(cache: Cache, config: DumpConfig) -> None:
    """All of these were opened by now: the user gave them, now or before."""
    teacher = _found_from_everywhere(config.teacher)
    remember_cache(cache, dataset=config.dataset, teacher=teacher, augment=config.augment, codec=config.named_codec)


def remove_leftovers(folder: Path) -> None:
    """Removes what dead processes of this host left half-written."""
    for leftover in remove_dead_temporaries(folder):
        log.info(f"removed {leftover.name}: its writer is gone")


def _found_from_everywhere(teacher: str) -> str:
    """A teacher's spec; a folder of one by its whole path."""
    folder = known_folder(teacher)
    return teacher if folder is None else str(folder.absolute())


def _is_whole(cache: Cache, config: DumpConfig, signals: Sequence[Signal], samples_kept: int) -> bool:
    """Whether all that is asked for is there, by the folders' listings alone."""
    state, views = cache.manifest.state, config.views or cache.views
    return (
        views <= state.views
        and samples_kept <= state.samples
        and all(is_kept(state, signal, config.codec, config.compressions) for signal in signals)
        and all((cache.folder / name).exists() for name in once_per_cache(state))
        and all((cache.folder / constants_name(n)).exists() for n, column in state.columns.items() if column.constants)
        and not cache.missing(cache.manifest.columns, views)
    )


def _batch(
    config: DumpConfig,
    network: Network,
    viewed: Viewed,
    device: torch.device,
    arithmetic: Arithmetic,
    columns: Sequence[str],
    divided: bool,
) -> int:
    """Rows of a forward pass where nobody says: on a GPU they are found by trying.

    They become part of the cache's identity. Processes that share a dump must agree on them without asking each other,
    so those take the default; so does a compiled network, which would be compiled for each size.
    """
    if device.type != "cuda" or divided or config.compile:
        return default_batch(viewed, device.type)
    return pick_batch(
        network,
        viewed,
        device,
        dtype=config.dtype or "float32",
        arithmetic=arithmetic,
        columns=columns,
    )
