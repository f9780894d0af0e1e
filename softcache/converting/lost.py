"""What the codecs of a converted cache have lost of what the source says."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from softcache.cache.reader import Cache
from softcache.converting.source import Source
from softcache.dumping.codec_error import CodecError, Draw, Measured
from softcache.ragged import Int64

CHUNK_ROWS = 1 << 20  # of which keys are drawn at once
CHUNK_BYTES = 8 << 20  # of values that are measured at once


def lost(source: Source, cache: Cache, column: str, device: torch.device) -> Measured | None:
    """The error of a column's codec against what the source's codec gives back, on the keys that a dump would measure:
    drawn over all rows and views. None where the record says it already, of just as many keys.

    It is measured when all shards are there, and so doesn't depend on how often a conversion was killed. Errors:
    ``IntegrityError`` that names a shard of the source which is missing or damaged.
    """
    layout = cache.layout(column)
    longest = int(source.cache.places(column).max()) if layout.ragged else 1
    rows = np.arange(cache.rows) if layout.share is None else np.flatnonzero(source.cache.places(column))
    draw = Draw.of(cache, column)
    drawn = [(view, some) for view in range(cache.views) for some in _drawn(draw, view, rows)]
    if sum(len(some) for _, some in drawn) == cache.manifest.state.columns[column].error.get("keys"):
        return None
    measure, step = CodecError(layout), max(1, CHUNK_BYTES // (4 * int(np.prod(layout.shape)) * max(1, longest)))
    for some in _chunks(drawn, step):
        measure(source.values(column, some).to(device), sum(len(rows) for _, rows in some))
    return measure.result()


def _drawn(draw: Draw, view: int, rows: Int64) -> Iterator[Int64]:
    for first in range(0, len(rows), CHUNK_ROWS):
        some = rows[first : first + CHUNK_ROWS]
        at = draw.among(view, some)
        if len(at):
            yield some[at]


def _chunks(keys: list[tuple[int, Int64]], step: int) -> Iterator[list[tuple[int, Int64]]]:
    """At most ``step`` keys at a time, of several views where these have few each."""
    held: list[tuple[int, Int64]] = []
    room = step
    for view, rows in keys:
        while len(rows):
            held.append((view, rows[:room]))
            rows, room = rows[room:], room - len(held[-1][1])
            if not room:
                yield held
                held, room = [], step
    if held:
        yield held
