"""The columns that a converted cache is to have: which of the source's, in which codec, in shards of how many rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from softcache.cache.column import Column
from softcache.cache.compression import NAME, is_asked_compression, parse_compression, settled_compression
from softcache.cache.reader import Cache
from softcache.cache.schema import MAX_CONVERSIONS, ColumnRecord, Conversion
from softcache.codecs._open import is_asked, is_own, open_codec, option_of, refuse_kind, settled_codec
from softcache.dumping.columns import compress_of, refuse_unknown, shard_rows
from softcache.dumping.signals import UNCOMPRESSED, Signal
from softcache.errors import CacheError, UsageError
from softcache.ragged import Int64

EXACT, EXACT_DTYPE = "fp32", "float32"  # the codec that keeps all of what a teacher of this dtype says


@dataclass(frozen=True)
class Wanted:
    """A column of the cache that is made. ``record``: its record, without the constants of a codec that is still to be
    fitted; ``layout``: how it lies on disk. ``recoded``: whether its codec is another than in the source; else what is
    stored is copied."""

    record: ColumnRecord
    layout: Column
    recoded: bool


def wanted_columns(
    source: Cache,
    names: Collection[str],
    codecs: Mapping[str, str],
    codec: str | None,
    compress: Mapping[str, str],
    most_rows: int | None,
    lengths: Mapping[str, Int64],
) -> dict[str, Wanted]:
    """By name, in the order of the source. ``names``: of the columns that stay. ``codecs``: of columns that have one of
    their own; ``codec``: of all others, None leaves them as they are. ``compress``: as ``compress_of`` takes it; where
    it says nothing, what is compressed stays so, and in another codec at the same level. ``most_rows``: of a shard,
    None for as many as a dump in this codec makes, and for what is copied as many as it has. ``lengths``: (N,) of each
    input whose rows have lengths of their own.

    Errors: ``UsageError`` where a column can't be kept in the codec that is asked for.
    """
    refuse_unknown(compress, list(names))
    grid = source.manifest.identity.grid
    if most_rows is not None and most_rows > grid.block_rows:
        raise UsageError(
            f"--shard-rows {most_rows}: a shard of {source.folder} has at most {grid.block_rows} rows, as the dump was "
            "asked for, which is part of what the cache is: take fewer, or dump again with more"
        )
    found = {}
    for name in source.manifest.columns:
        if name not in names:
            continue
        record, spec = source.manifest.state.columns[name], codecs.get(name) or codec
        option = Signal(name, record.kind).option
        if spec is None or is_asked(spec, record.codec):
            layout, recoded = source.layout(name), False
        else:
            record, layout = _recoded(source, name, spec, option)
            recoded = True
        kept = _compressed(source.layout(name), layout, compress_of(name, compress), recoded)
        record, layout = dataclasses.replace(record, compress=kept), dataclasses.replace(layout, compress=kept)
        if recoded or most_rows is not None:
            rows = shard_rows(layout, source.rows, grid.block_rows, lengths, option)
            rows = rows if most_rows is None else min(rows, most_rows)
            record = dataclasses.replace(record, shard_rows=rows)
            layout = dataclasses.replace(layout, shard_rows=rows)
        found[name] = Wanted(record, layout, recoded)
    own = sorted({option_of(column.record.codec) for column in found.values() if is_own(column.record.codec)})
    if len(own) > 1:
        raise UsageError(f"{own[0]} and {own[1]} are both code, and a cache has one codec of your own: convert both")
    return found


def _recoded(source: Cache, name: str, spec: str, option: str) -> tuple[ColumnRecord, Column]:
    there, kept = source.manifest.state.columns[name], source.layout(name)
    refuse_kind(spec, there.kind, option)
    if kept.keeps_leaders:
        raise UsageError(
            f"{option}:codec={spec}: {source.folder} keeps {name} in {option_of(there.codec)}, so only its largest "
            f"logits, of which no other codec can be made: leave it as it is, {option}:codec={option_of(there.codec)}, "
            "or dump it again in the codec that you want"
        )
    converted = [*there.converted]
    if there.codec != EXACT or converted or source.manifest.identity.teacher.numerics.dtype != EXACT_DTYPE:
        converted.append(Conversion(there.codec, there.constants, there.error))
    if len(converted) > MAX_CONVERSIONS:
        raise UsageError(f"{option}: it was converted {MAX_CONVERSIONS} times already: dump it again")
    recorded = settled_codec(spec, there.kind, there.tail)
    record = ColumnRecord(there.kind, there.shape, recorded, 1, there.lengths, there.stride, converted=converted)
    layout = Column.of(name, record, open_codec(spec if is_own(recorded) else recorded))
    layout.arrays(1)  # refuses what the codec can't keep
    return record, layout


def _compressed(there: Column, here: Column, asked: str | None, recoded: bool) -> str | None:
    """How a column is compressed, as a manifest records it. ``there``: in the source; ``asked``: for it."""
    if asked == UNCOMPRESSED or (asked is None and there.compress is None):
        return None
    if not recoded and (asked is None or is_asked_compression(asked, there.compress)):
        return there.compress
    if asked is None:
        asked = f"{NAME}:level={parse_compression(str(there.compress)).level}"
    return settled_compression(asked, here.row)


def matched(wanted: Mapping[str, Wanted], existing: Cache, source: Path) -> dict[str, Wanted]:
    """The columns as a cache that is there has them, because the same conversion began it, or has done it.

    Errors: ``CacheError`` where a column is there that is something else.
    """
    found = dict(wanted)
    for name, column in wanted.items():
        held = existing.manifest.state.columns.get(name)
        if held is None:
            continue
        ours = column.record
        if column.recoded and is_asked(ours.codec, held.codec):  # constants and sizes that were open were settled then
            ours = dataclasses.replace(ours, codec=held.codec, constants=held.constants, fitted_views=held.fitted_views)
        if ours.sha256() != held.sha256():
            raise CacheError(
                f"{existing.folder} holds {name} as {_told(held)}, and {source} would be converted to {_told(ours)}: "
                "ask for the same again, or name another folder"
            )
        found[name] = Wanted(held, existing.layout(name), column.recoded)
    return found


def _told(record: ColumnRecord) -> str:
    """``int:bits=4 in shards of 64 rows, compressed as zstd:…, made of fp16``."""
    compressed = f", compressed as {record.compress}" if record.compress else ""
    steps = " and ".join(option_of(step.codec) for step in record.converted)
    return f"{option_of(record.codec)} in shards of {record.shard_rows} rows{compressed}" + (
        f", made of {steps}" if steps else ""
    )
