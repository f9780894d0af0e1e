"""Choosing the smallest codec within a bound, by what the teacher says of keys drawn over all rows and views."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from softcache.cache.column import Column
from softcache.cache.schema import ColumnRecord, Identity, share_of
from softcache.cache.shares import places_in
from softcache.cache.sizes import constants_bytes, shards_bytes
from softcache.codecs._auto import candidates
from softcache.codecs._open import open_codec, sized_codec
from softcache.console import counted
from softcache.dumping.bound import Bound, in_words
from softcache.dumping.codec_error import CodecError
from softcache.dumping.columns import compress_of, new_record
from softcache.dumping.drawn import Said, said_of_drawn
from softcache.dumping.forward import Forward
from softcache.dumping.shapes import SignalShape
from softcache.dumping.signals import Signal
from softcache.errors import UsageError
from softcache.views._open import Viewed

log = logging.getLogger(__name__)

SPARE = 2.0  # standard errors by which an error is below its bound, so that keys that weren't drawn are too
AT_ONCE = 2**22  # numbers that are coded together


@dataclass(frozen=True)
class Option:
    """A codec that may be chosen. ``column``: as it is without compression; ``key_bytes``: what its files then take,
    shared out to all keys."""

    record: ColumnRecord
    column: Column
    key_bytes: float


@dataclass(frozen=True)
class Judged:
    """Which mean error of a codec is the largest, how large it is, and whether it is within the bound. ``at_least``:
    it was clear before all keys had been looked at that it isn't."""

    name: str
    error: float
    holds: bool
    at_least: bool = False


def chosen(
    identity: Identity,
    viewed: Viewed,
    forward: Forward,
    records: Mapping[str, ColumnRecord],
    undecided: Mapping[str, Bound],
    views: int,
    compress: Mapping[str, str],
) -> tuple[dict[str, ColumnRecord], dict[str, Said]]:
    """The records of columns in the codecs that are chosen for those that are ``undecided``, and what the teacher says
    of the keys that this was found out with. The codecs of their records until now don't matter. ``compress``: as
    ``compress_of`` takes it.

    Errors: ``NumericsError`` where nothing that the teacher says is finite.
    """
    if not undecided:
        return dict(records), {}
    columns = [Column.of(name, records[name], open_codec(records[name].codec)) for name in undecided]
    said, found = said_of_drawn(identity, viewed, forward, columns, views), dict(records)
    for name, bound in undecided.items():
        log.info(
            f"{name}: the smallest codec within {bound} is looked for on {counted(said[name].keys, 'key')} of "
            f"{counted(views, 'view')}"
        )
        asked = compress_of(name, compress)
        options = options_for(name, records[name], said[name], viewed, identity.grid.block_rows, views, asked)
        share = share_of(name)
        rows = len(viewed) if share is None else int(places_in(share, len(viewed)).sum())
        found[name] = choose(options, said[name], bound, rows * views, forward.device).record
    return found, said


def options_for(
    name: str,
    record: ColumnRecord,
    said: Said,
    viewed: Viewed,
    block_rows: int,
    views: int,
    compress: str | None = None,
) -> list[Option]:
    """All codecs that a column may be kept in, the smallest first. ``said``: decides the size of some. ``compress``: as
    ``new_record`` takes it; what it gains isn't known before all is written, so sizes are those without it."""
    rows, lengths, found = len(viewed), viewed.lengths(), []
    shape = SignalShape([*([] if record.lengths is None else [None]), *record.tail], record.lengths, record.stride)
    for open_size in candidates(record.kind, record.tail):
        try:
            codec = sized_codec(open_size, said.values)
            kept = new_record(Signal(name, record.kind, codec), shape, None, rows, block_rows, lengths, compress)
        except UsageError:  # it isn't for such values, or its rows are too short or too long for the chunks asked for
            continue
        column = Column.of(name, dataclasses.replace(kept, compress=None), open_codec(kept.codec))
        size = views * sum(shards_bytes(column, rows, lengths)) + constants_bytes(column, kept.codec, views)
        found.append(Option(kept, column, size / (rows * views)))
    # Files are whole pages, so that small shards in different codecs may be as large as each other.
    return sorted(found, key=lambda option: (option.key_bytes, option.column.place_bytes or option.column.row_bytes))


def choose(options: list[Option], said: Said, bound: Bound, keys: int, device: torch.device) -> Option:
    """The first one that holds. ``keys``: that the column has in the whole cache, of which ``said`` are some."""
    for option in options:
        found = judged(option.column, said, bound, keys, device)
        log.info(
            f"{option.column.name}: {option.record.codec}, {option.key_bytes:,.1f} bytes a key"
            f"{' before compression' if option.record.compress else ''}: "
            f"{'at least ' if found.at_least else ''}{found.error:.2g} ({in_words(found.name)}), "
            f"{'chosen' if found.holds else 'too much'}"
        )
        if found.holds:
            return option
    raise AssertionError(f"{options[-1].record.codec} loses nothing")


def judged(column: Column, said: Said, bound: Bound, keys: int, device: torch.device) -> Judged:
    """Whether a codec holds, with ``SPARE`` standard errors left. One that is fitted to values is fitted to half of the
    drawn rows and judged by the others."""
    values, part = said.values, 1.0
    if column.has_constants:
        fitted_on, values = said.halves()
        part = len(values) / len(said.values)
        column = dataclasses.replace(column, constants=_fitted_to(column, fitted_on))
    measure, done = CodecError(column), 0
    for some in values.split(max(1, AT_ONCE // max(1, math.prod(column.shape)))):
        measure(some.to(device), len(some))
        done += len(some)
        spread = measure.spread(bound.names)
        name = max(spread, key=lambda name: spread[name][0])
        error = spread[name][0]
        if done < len(values) and not error * done <= bound.most * len(values):
            return Judged(name, error * done / len(values), holds=False, at_least=True)
    # Of a population that is looked at whole the mean is known, and has no standard error.
    unseen = math.sqrt(max(0.0, 1 - part * said.keys / keys))
    holds = all(mean + SPARE * unseen * error <= bound.most for mean, error in spread.values())
    return Judged(name, error, holds)


def _fitted_to(column: Column, values: torch.Tensor) -> Callable[[], dict[str, torch.Tensor]]:
    arrays = {name: torch.from_numpy(array) for name, array in column.fit(values).items()}
    return lambda: arrays
