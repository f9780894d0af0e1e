"""The columns of a dump: what is asked for, what the cache has, how each is kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from softcache.cache.column import Column
from softcache.cache.manifest import Manifest
from softcache.cache.reader import Cache
from softcache.cache.schema import LOGITS, MAX_SHARD_BYTES, ColumnRecord, Identity, State, is_hint
from softcache.codecs._open import open_codec, option_of, recorded_codec
from softcache.dumping.forward import Forward
from softcache.dumping.signals import Signal, parse_output
from softcache.errors import CacheError, UsageError
from softcache.views._open import Viewed

DEFAULT_CODEC = "fp16"


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
    identity: Identity,
    existing: Manifest | None,
) -> dict[str, ColumnRecord]:
    """The columns that the cache has and those asked for, whose shapes come from one run of the teacher on one row.

    ``codec``: of signals that don't name one; None is the cache's, or the default.

    Errors: ``CacheError`` where a column is there of another kind or in another codec than is asked for.
    """
    found = dict(existing.state.columns) if existing else {}
    new = []
    for signal in signals:
        there, wanted = found.get(signal.column), signal.codec or codec
        if there is None:
            new.append(signal)
        elif there.kind != signal.kind or (wanted is not None and recorded_codec(wanted) != there.codec):
            held = option_of(there.codec)
            as_asked = f"{signal.kind} in {wanted or held}"
            raise CacheError(
                f"{signal.column} is there as {there.kind} in {held}, asked for as {as_asked}: "
                "leave that out or use another --out"
            )
    if new:
        said = Forward(forward.network, [signal.column for signal in new], forward.device, amp=forward.amp)(
            viewed.batch(np.arange(1), 0).to(forward.device)
        )
        for signal in new:
            shape = list(said[signal.column].shape[1:])
            if not shape and signal.kind != "values":
                raise UsageError(f"{signal.option}: one number a sample has no axis of {signal.kind}: use kind=values")
            found[signal.column] = _record(signal, shape, signal.codec or codec or DEFAULT_CODEC, identity)
    return dict(sorted(found.items()))


def _record(signal: Signal, shape: list[int], codec: str, identity: Identity) -> ColumnRecord:
    """With as many rows a shard as a block has, unless that were too many bytes."""
    assert signal.kind is not None
    column = Column(signal.column, signal.kind, tuple(shape), open_codec(codec), 1)
    rows = identity.grid.block_rows
    while rows > 1 and rows * column.row_bytes > MAX_SHARD_BYTES:
        rows //= 2
    return ColumnRecord(signal.kind, shape, recorded_codec(codec), rows)


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
        else Column.of(name, record, open_codec(asked[name] or record.codec))
        for name, record in records.items()
    ]


def is_kept(state: State, signal: Signal, codec: str | None) -> bool:
    """Whether a cache is asked for it already, in this way. ``codec``: of signals that name none; None is any."""
    there, wanted = state.columns.get(signal.column), signal.codec or codec
    if there is None or there.kind != signal.kind:
        return False
    return wanted is None or recorded_codec(wanted) == there.codec


def listed(cache: Cache) -> str:
    """Outputs and hints with their codecs, for people."""
    columns = cache.manifest.state.columns
    return ", ".join(f"{name} in {option_of(columns[name].codec)}" for name in cache.manifest.columns)
