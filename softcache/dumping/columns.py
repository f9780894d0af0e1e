"""The columns of a dump: what is asked for, what the cache has, how each is kept."""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from softcache.cache.column import Column
from softcache.cache.compression import is_asked_compression, settled_compression
from softcache.cache.reader import Cache
from softcache.cache.schema import (
    LOGITS,
    MAX_RAGGED_ROWS,
    MAX_ROW_BYTES,
    MAX_SHARD_BYTES,
    ColumnRecord,
    State,
    is_hint,
    share_of,
)
from softcache.codecs._auto import asked_auto, refuse_other_bound
from softcache.codecs._open import is_asked, is_own, open_codec, option_of, refuse_kind, settled_codec
from softcache.dumping.bound import Bound
from softcache.dumping.forward import Forward
from softcache.dumping.shapes import Shapes, SignalShape
from softcache.dumping.signals import UNCOMPRESSED, Signal, parse_output
from softcache.errors import CacheError, SoftcacheError, UsageError, nearest
from softcache.ragged import Int64, offsets_of
from softcache.views._open import Viewed

DEFAULT_CODEC = "fp16"
UNTIL_CHOSEN = "fp32"  # what a column is in until the smallest codec that will do is found


def wanted_signals(
    asked: Sequence[Signal], existing: Cache | None, *, outputs_named: bool, label_kind: str
) -> list[Signal]:
    """What is asked for of the teacher. Where nobody names an output, the cache's own or, in a new one, logits. Where
    nobody says of which kind logits are, they are as the cache has them or, in a new column, of ``label_kind``.

    Errors: ``UsageError`` where a new cache would have nothing.
    """
    signals, held = list(asked), existing.manifest.state.columns if existing else {}
    if not outputs_named:
        outputs = [Signal(name, held[name].kind) for name in held if not is_hint(name)]
        signals = [*(outputs if existing else [parse_output(LOGITS)]), *signals]
    if not (signals or existing):
        raise UsageError("--output none keeps no output, and no --hint is asked for: there would be nothing to keep")
    return [
        dataclasses.replace(signal, kind=held[signal.column].kind if signal.column in held else label_kind)
        if signal.kind is None
        else signal
        for signal in signals
    ]


def columns_to_keep(
    forward: Forward,
    viewed: Viewed,
    signals: Sequence[Signal],
    codec: str | None,
    block_rows: int,
    existing: Cache | None,
    compress: Mapping[str, str],
) -> dict[str, ColumnRecord]:
    """The columns that the cache has and those asked for, whose shapes come from running the teacher on single rows.
    A new one whose codec is to be chosen (``auto``) is in ``fp32`` until that is done.

    ``codec``: of signals that don't name one; None is the cache's, or the default. ``block_rows``: of the cache's grid.
    ``compress``: as ``compress_of`` takes it.

    Errors: ``CacheError`` where a column is there of another kind, in another codec or compressed otherwise than is
    asked for, or loses more than is asked for.
    """
    found = dict(existing.manifest.state.columns) if existing else {}
    refuse_unknown(compress, [*found, *(signal.column for signal in signals)])
    new = []
    for signal in signals:
        there, wanted = found.get(signal.column), signal.codec or codec
        if there is None:
            new.append(signal)
            continue
        assert existing is not None
        asked = compress_of(signal.column, compress)
        if not _is_compressed_so(asked, there.compress):
            convert = _or_convert(existing, str(asked), f"--compress {signal.column}={asked}")
            raise CacheError(
                f"{signal.column} is there {_compressed_as(there.compress)}, asked for {_compressed_as(asked)}: leave "
                f"--compress out or use another --out{convert}"
            )
        if there.kind != signal.kind or not _is_within(wanted, there):
            held, bound = option_of(there.codec), Bound.asked(wanted, there.kind)
            if there.kind == signal.kind and bound is not None:
                raise CacheError(
                    f"{signal.column} is there in {held}, which loses {bound.told(there)}, more than {bound}: ask for "
                    "what it is in to go on with it, or use another --out"
                )
            as_asked, convert = f"{signal.kind} in {wanted or held}", ""
            if wanted is not None and there.kind == signal.kind and _can_become(there, wanted):
                convert = _or_convert(existing, wanted, f"{signal.option}:codec={wanted}")
            raise CacheError(
                f"{signal.column} is there as {there.kind} in {held}, asked for as {as_asked}: "
                f"leave that out or use another --out{convert}"
            )
    for signal in new:
        assert signal.kind is not None
        if asked_auto(codec_of(signal, codec)) is None:
            refuse_kind(codec_of(signal, codec), signal.kind, signal.option)
        elif signal.codec is not None:
            refuse_other_bound(signal.codec, signal.kind, signal.option)
    if new:
        shapes = Shapes(forward, viewed, new)
        for signal in new:
            found[signal.column] = new_record(
                signal,
                shapes.find(signal),
                codec,
                len(viewed),
                block_rows,
                viewed.lengths(),
                compress_of(signal.column, compress),
            )
    return dict(sorted(found.items()))


def _or_convert(cache: Cache, wanted: str, option: str) -> str:
    """The command that makes what is ``wanted`` of a column that is there otherwise, with this ``option``; what to do
    instead where the cache is in a store, where none is converted."""
    if cache.uploading is not None:
        return f", or softcache copy {cache.where} to a folder and convert that"
    folder = cache.folder
    name = folder.with_name(f"{folder.name}-{re.sub(r'[^A-Za-z0-9.]+', '-', Path(wanted).name)}")
    option, value = option.split(" ", 1)
    return f", or convert it: {shlex.join(['softcache', 'convert', str(folder), str(name), option, value])}"


def _can_become(there: ColumnRecord, wanted: str) -> bool:
    """Whether a column can be converted to a codec."""
    if not is_own(there.codec):
        kept = open_codec(there.codec)
        if hasattr(kept, "shaped") and hasattr(kept.shaped(there.tail), "target"):
            return False  # it keeps leaders alone
    try:
        refuse_kind(wanted, there.kind, there.kind)
        open_codec(settled_codec(wanted, there.kind, there.tail)).arrays(there.tail)
    except SoftcacheError:  # also what is no codec at all: whoever asked for it is told that it is there in another one
        return False
    return True


def refuse_converted(cache: Cache, views: int) -> None:
    """Errors: ``CacheError`` where a dump of so many views would have to add to a column that was converted from a
    codec which had lost something: what the teacher says is not what is kept there."""
    converted = [name for name, record in cache.manifest.state.columns.items() if record.converted]
    missing = cache.missing(converted, views)
    if missing:
        view, name, _ = missing[0]
        steps = " and ".join(option_of(step.codec) for step in cache.manifest.state.columns[name].converted)
        raise CacheError(
            f"{cache.where} keeps {name} as it was converted from {steps}, and view {view} of it isn't complete: a "
            "dump would add other values; add the view to the cache that it was converted from, and run the same "
            f"softcache convert again{'' if cache.uploading is None else ', and copy what that makes'}"
        )


def new_record(
    signal: Signal,
    shape: SignalShape,
    codec: str | None,
    rows: int,
    block_rows: int,
    lengths: Mapping[str, Int64],
    compress: str | None = None,
) -> ColumnRecord:
    """The record of a column that a cache of ``rows`` rows doesn't have yet, of a signal whose kind is known.
    ``compress``: as ``parse_compression`` takes it.

    Errors: ``UsageError`` for a kind that numbers of this shape can't have, where one row is too large, and for a
    compression that can't be.
    """
    if shape.shape in ([], [None]) and signal.kind != "values":
        what = "place" if shape.shape else "sample"
        raise UsageError(f"{signal.option}: one number a {what} has no axis of {signal.kind}: use kind=values")
    size = 4 * math.prod(shape.tail)
    if size > MAX_ROW_BYTES:
        what = "place" if shape.lengths else "key"
        raise UsageError(
            f"{signal.option}: the numbers of one {what} are {size >> 20:,} MiB as float32, and they may be "
            f"{MAX_ROW_BYTES >> 20}: keep less of it, or cut rows into shorter ones"
        )
    assert signal.kind is not None
    spec = codec_of(signal, codec)
    spec = spec if asked_auto(spec) is None else UNTIL_CHOSEN
    whole = [] if share_of(signal.column) is None else [None]  # rows of the share have one place, the others none
    record = ColumnRecord(signal.kind, [*whole, *shape.shape], "", 1, shape.lengths, shape.stride)
    record = dataclasses.replace(record, codec=settled_codec(spec, signal.kind, record.tail))
    column = Column.of(signal.column, record, _opened(spec, record.codec))
    return dataclasses.replace(
        record,
        shard_rows=shard_rows(column, rows, block_rows, lengths, signal.option),
        compress=settled_compression(None if compress == UNCOMPRESSED else compress, column.row),
    )


def refuse_unknown(compress: Mapping[str, str], columns: Sequence[str]) -> None:
    """Errors: ``UsageError`` where columns that don't exist are to be compressed. ``compress``: as ``compress_of``."""
    if unknown := set(compress) - {"", *columns}:
        raise UsageError(f"--compress {min(unknown)}=…: there is no such column{nearest(min(unknown), columns)}")


def compress_of(column: str, compress: Mapping[str, str]) -> str | None:
    """How a column is to be compressed. ``compress``: by the names of columns, and by ``""`` of all others; ``none`` is
    not at all, and None where nobody says."""
    return compress.get(column, compress.get(""))


def _is_compressed_so(asked: str | None, recorded: str | None) -> bool:
    if asked is None:
        return True
    return recorded is None if asked == UNCOMPRESSED else is_asked_compression(asked, recorded)


def _compressed_as(compress: str | None) -> str:
    return "uncompressed" if compress in (None, UNCOMPRESSED) else f"compressed as {compress}"


def codec_of(signal: Signal, codec: str | None) -> str:
    """In which codec a new column is kept. ``codec``: of signals that name none."""
    return signal.codec or codec or DEFAULT_CODEC


def _opened(asked: str | None, recorded: str) -> Any:
    """The codec of a manifest; code is the one that the user named."""
    return open_codec(asked if asked is not None and is_own(recorded) else recorded)


def shard_rows(column: Column, count: int, block_rows: int, lengths: Mapping[str, Int64], option: str) -> int:
    """As many rows a shard as a block has, unless that were too many bytes: of a ragged column, in the shard whose rows
    are longest together. ``count``: rows of the cache.

    Errors: ``UsageError`` where one row is too large.
    """
    rows = block_rows
    if not column.ragged:
        while rows > 1 and rows * column.row_bytes > MAX_SHARD_BYTES:
            rows //= 2
        return rows
    offset = offsets_of(column.places(count, lengths))
    longest = int(np.diff(offset).argmax())
    largest = int(offset[longest + 1] - offset[longest]) * column.place_bytes
    if largest > MAX_ROW_BYTES:
        raise UsageError(
            f"{option}: row {longest} would take {largest >> 20:,} MiB, and a row may take {MAX_ROW_BYTES >> 20}: "
            "cut the longest rows, or use a smaller codec"
        )
    rows = min(rows, MAX_RAGGED_ROWS)
    while rows > 1:
        places = int(np.diff(offset[np.append(np.arange(0, count, rows), count)]).max())
        if column.nbytes(rows, places) <= MAX_SHARD_BYTES:
            break
        rows //= 2
    return rows


def layouts(
    records: dict[str, ColumnRecord], signals: Sequence[Signal], codec: str | None, existing: Cache | None
) -> list[Column]:
    """How these columns lie on disk. A codec that is code is the one that the user named. ``codec``: of signals that
    name none."""
    asked = {signal.column: signal.codec or codec for signal in signals}
    held = existing.manifest.state.columns if existing else {}
    return [
        existing.layout(name)
        if existing and name in held
        else Column.of(name, record, _opened(asked[name], record.codec))
        for name, record in records.items()
    ]


def is_kept(state: State, signal: Signal, codec: str | None, compress: Mapping[str, str]) -> bool:
    """Whether a cache is asked for it already, in this way. ``codec``: of signals that name none; None is any.
    ``compress``: as ``compress_of`` takes it."""
    there, wanted = state.columns.get(signal.column), signal.codec or codec
    return (
        there is not None
        and there.kind == signal.kind
        and _is_compressed_so(compress_of(signal.column, compress), there.compress)
        and _is_within(wanted, there)
    )


def _is_within(wanted: str | None, there: ColumnRecord) -> bool:
    """Whether a column is kept as a spec asks for it: in this codec or, of ``auto``, in one that loses no more, as far
    as that has been measured. None asks for nothing."""
    if wanted is None:
        return True
    bound = Bound.asked(wanted, there.kind)
    return is_asked(wanted, there.codec) if bound is None else bound.holds(there)


def listed(cache: Cache) -> str:
    """Outputs and hints with their codecs, for people."""
    columns = cache.manifest.state.columns
    return ", ".join(
        f"{name} in {option_of(columns[name].codec)}{', compressed' if columns[name].compress else ''}"
        for name in cache.manifest.columns
    )
