"""What a dump would write, take and cost, before anything is dumped: ``softcache plan``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from softcache.addresses import is_address
from softcache.cache.column import Column
from softcache.cache.constants import constants_name
from softcache.cache.schema import LOGITS, MAX_SHARDS, ROWS, SAMPLES, VIRTUAL, ColumnRecord, is_hint
from softcache.cache.sizes import constants_bytes, rows_bytes, samples_bytes, shards_bytes
from softcache.cache.virtual import virtual_bytes
from softcache.config.dump import default_views
from softcache.config.folders import cache_folder
from softcache.config.options import command
from softcache.config.plan import SIDE, PlanConfig
from softcache.config.teachers import default_data
from softcache.datasets._open import open_samples
from softcache.datasets._stand_in import stand_in
from softcache.device import pick_device
from softcache.dumping import costs
from softcache.dumping.columns import compress_of, layouts, new_record, refuse_unknown, wanted_signals
from softcache.dumping.disk import DiskRate
from softcache.dumping.estimate import places_together
from softcache.dumping.identity import default_block_rows
from softcache.dumping.prepare import kept_samples, samples_to_keep
from softcache.dumping.shapes import SignalShape
from softcache.dumping.signals import Signal
from softcache.dumping.smaller import Choice, key_bytes, smaller_codecs
from softcache.errors import CacheError, UsageError
from softcache.localfiles import local_path
from softcache.stages._probing import Measured, measure
from softcache.stages._skeleton import shapes_of
from softcache.views._open import Viewed, view_samples

MEGA = 1e6  # bytes, as disks and networks are sold


@dataclass(frozen=True)
class PlannedColumn:
    """``key_bytes``: of one key, its digest included, of rows that have lengths of their own their mean;
    ``shards``: of one view, ``view_bytes`` as files. ``smaller``: other codecs that keep less. ``compress``: how it is
    compressed; its bytes are then those that it takes at most, because its numbers decide."""

    name: str
    kind: str
    shape: list[int | None]
    codec: str
    key_bytes: int
    shard_rows: int
    shards: int
    view_bytes: int
    smaller: list[Choice]
    compress: str | None = None


@dataclass(frozen=True)
class Files:
    """Of a whole cache. ``bytes``: of all files but ``cache.json``, which is small and holds a date, at most where a
    column is compressed; ``files``: all of them; ``other``: bytes of those that are no shards, by name."""

    bytes: int
    files: int
    shards: int
    view_bytes: int
    other: dict[str, int]


@dataclass(frozen=True)
class Dumping:
    """How long the dump takes on ``gpus`` devices at ``rate`` inputs a second each, and what it writes meanwhile.
    ``measured_on``: the device, where the rate was measured; ``inputs_rate``: at which one process makes inputs.
    ``waiting``: the share of the time in which teachers wait for the disk, None where its rate isn't known."""

    gpus: int
    rate: float
    hours: float
    written_mb_per_s: float
    waiting: float | None
    measured_on: str
    inputs_rate: float | None


@dataclass(frozen=True)
class Students:
    """``live_factor``: k, by which a live teacher makes each step longer; ``read_mb_per_s``: of all readers."""

    rate: float
    readers: int
    read_mb_per_s: float
    live_factor: float | None


@dataclass(frozen=True)
class Paid:
    """From when on a cache has cost less than a live teacher: ``epochs`` of all students together, ``students`` of
    ``student_epochs`` each. Money, where a price is given: of the dump, of the dump for each reader, and of a live
    teacher for one student."""

    epochs: float
    students: int | None
    student_epochs: int | None
    dump_cost: float | None
    cost_a_reader: float | None
    live_cost: float | None


@dataclass(frozen=True)
class Plan:
    """What ``plan`` found; parts that too little was said for are None. ``disk_mb_per_s``: given or measured."""

    data: str
    rows: int
    views: int
    recipe: str
    device: str
    columns: list[PlannedColumn]
    files: Files
    dumping: Dumping | None
    students: Students | None
    paid: Paid | None
    disk_mb_per_s: float | None
    disk: DiskRate | None

    @property
    def keys(self) -> int:
        return self.rows * self.views

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "keys": self.keys}


@command(PlanConfig)
def plan(asked: PlanConfig) -> Plan:
    """A dump that begins with nothing, in bytes, hours and costs. Nothing is written but what ``probe`` measures a disk
    with, and no published parameters are read or downloaded.

    Errors: those of opening the data and the teacher; ``UsageError`` for a column whose shape isn't known;
    ``CacheError`` for more shards than a cache may have.
    """
    viewed = _viewed(asked)
    device = "cuda" if asked.gpus is not None else pick_device(asked.device).type
    dump, samples = asked.dump, viewed.samples
    views = asked.views or default_views(viewed.recipe)
    block_rows = asked.shard_rows or default_block_rows(viewed, device)
    signals = wanted_signals(dump.signals, None, outputs_named=bool(asked.output), label_kind=samples.label_kind)
    refuse_unknown(dump.compressions, [signal.column for signal in signals])
    shapes, lengths = _shapes(asked, viewed, signals), viewed.lengths()
    records = {
        signal.column: new_record(
            signal,
            shapes[signal.column],
            asked.codec,
            len(viewed),
            block_rows,
            lengths,
            compress_of(signal.column, dump.compressions),
        )
        for signal in sorted(signals, key=lambda signal: (is_hint(signal.column), signal.column))
    }
    columns = layouts(records, signals, asked.codec, None)
    planned = [_planned(column, records[column.name], viewed) for column in columns]
    files = _files(asked, viewed, views, columns, records, planned)
    if asked.out is not None and is_address(asked.out):
        folder = None  # a store has no disk to be measured
    else:
        folder = local_path(asked.out, "--out") if asked.out else cache_folder(dump.teacher, samples.spec, asked.split)
    names = [column.name for column in columns]
    measured = measure(asked, viewed, names, block_rows, folder) if asked.probe else Measured()
    disk = asked.disk_rate or (measured.disk.bytes_per_second / MEGA if measured.disk else None)
    dumping = _dumping(asked, files, len(viewed) * views, measured, disk)
    students = _students(asked, sum(one.key_bytes for one in planned), dumping, measured)
    return Plan(
        samples.spec, len(viewed), views, str(viewed.recipe), device, planned, files, dumping, students,
        None if dumping is None else _paid(asked, len(viewed), views, dumping), disk, measured.disk,
    )  # fmt: skip


def _viewed(asked: PlanConfig) -> Viewed:
    if asked.rows is None:
        dataset, size = default_data(asked.dump.teacher, asked.dataset, asked.size)
        samples = open_samples(dataset, asked.split, data_dir=asked.data_dir, download=asked.download)
    else:
        _, size = default_data(asked.teacher, None, asked.size)
        size = size or SIDE
        samples = stand_in(asked.rows, asked.classes or 0, size)
    return view_samples(samples, asked.augment, size=size)


def _shapes(asked: PlanConfig, viewed: Viewed, signals: Sequence[Signal]) -> dict[str, SignalShape]:
    """As given, or as the teacher answers. Rows alone have as many logits as classes, without any teacher."""
    known = {column: SignalShape([*shape]) for column, shape in asked.shapes.items()}
    without = asked.rows is not None and asked.teacher is None
    if without and asked.classes is not None:
        known.setdefault(LOGITS, SignalShape([asked.classes]))
    unknown = [signal for signal in signals if signal.column not in known]
    if unknown and without:
        one = unknown[0]
        say = "--classes" if one.column == LOGITS else f"{one.option.split(':kind=')[0]}:shape=1024x14x14"
        raise UsageError(f"{one.option}: how many numbers are that of a key? say {say}, or name the --teacher")
    return known | (shapes_of(asked, viewed, unknown) if unknown else {})


def _planned(column: Column, record: ColumnRecord, viewed: Viewed) -> PlannedColumn:
    lengths, rows = viewed.lengths(), len(viewed)
    shards, places = shards_bytes(column, rows, lengths), places_together(column, rows, lengths)
    return PlannedColumn(
        column.name, column.kind, list(record.shape), record.codec, key_bytes(column, rows, places), column.shard_rows,
        len(shards), sum(shards), smaller_codecs(column, rows, places), record.compress,
    )  # fmt: skip


def _files(
    asked: PlanConfig,
    viewed: Viewed,
    views: int,
    columns: Sequence[Column],
    records: dict[str, ColumnRecord],
    planned: Sequence[PlannedColumn],
) -> Files:
    shards = views * sum(column.shards for column in planned)
    if shards > MAX_SHARDS:
        raise CacheError(
            f"a cache has at most {MAX_SHARDS:,} shards, this one would have {shards:,}: fewer --views, outputs or "
            "hints, a smaller --codec, or several caches"
        )
    samples, lengths = viewed.samples, viewed.lengths()
    kept = kept_samples(viewed, samples_to_keep(viewed, asked.keep_samples, None), None)
    other = {
        ROWS: rows_bytes(samples.labels, samples.names, lengths),
        SAMPLES: samples_bytes(kept),
        VIRTUAL: virtual_bytes(columns, len(viewed), views),
    }
    for column in columns:
        count = constants_bytes(column, records[column.name].codec, views)
        if count:
            other[constants_name(column.name)] = count
    a_view = sum(column.view_bytes for column in planned)
    return Files(views * a_view + sum(other.values()), shards + len(other) + 1, shards, a_view, other)


def _dumping(asked: PlanConfig, files: Files, keys: int, measured: Measured, disk: float | None) -> Dumping | None:
    rate = asked.rate or measured.rate
    if rate is None:
        return None
    gpus = asked.gpus or 1
    needed = costs.written_rate(files.bytes / keys, rate, gpus)
    waiting = None if disk is None else costs.waiting_share(needed, disk * MEGA)
    hours = costs.dump_seconds(keys, rate, gpus, waiting or 0.0) / 3600
    on = measured.device if asked.rate is None else ""
    return Dumping(gpus, rate, hours, needed / MEGA, waiting, on, measured.inputs_rate)


def _students(asked: PlanConfig, a_key: int, dumping: Dumping | None, measured: Measured) -> Students | None:
    rate = asked.student_rate or measured.student_rate
    if rate is None:
        return None
    readers = asked.readers or 1
    factor = None if dumping is None else costs.live_factor(dumping.rate, rate)
    return Students(rate, readers, costs.read_rate(a_key, rate, readers) / MEGA, factor)


def _paid(asked: PlanConfig, rows: int, views: int, dumping: Dumping) -> Paid:
    waiting, price, epochs = dumping.waiting or 0.0, asked.price, asked.epochs
    cost = None if price is None else dumping.hours * dumping.gpus * price
    live = (
        None if price is None or epochs is None else costs.dump_seconds(rows * epochs, dumping.rate, 1) / 3600 * price
    )
    return Paid(
        costs.break_even_epochs(views, waiting),
        None if epochs is None else costs.break_even_students(views, epochs, waiting),
        epochs,
        cost,
        None if cost is None or asked.readers is None else cost / asked.readers,
        live,
    )
