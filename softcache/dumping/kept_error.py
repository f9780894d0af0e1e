"""What codecs lose is written into the manifest as a dump goes on, and compared with what it may be."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path

from softcache.cache.reader import Cache
from softcache.cache.schema import State
from softcache.cache.writer import update_state
from softcache.codecs._open import option_of
from softcache.dumping.bound import Bound
from softcache.dumping.codec_error import Draw, Measured
from softcache.errors import NumericsError

log = logging.getLogger(__name__)

MUCH = 0.05  # of the size of a signal, that a codec loses of it without being worth a warning


def keep_error(folder: Path, bounds: Mapping[str, Bound], column: str, now: Measured, before: Measured) -> None:
    """Writes into the manifest what a column's codec loses, and warns where that is much. ``now``: on the keys that one
    process has measured; ``before``: what was written down of these already. ``bounds``: of columns, as asked for.

    Errors: ``NumericsError`` where a bound can't hold any more.
    """
    lost, known = now.error.get("relative_error_mean", 0.0), before.error.get("relative_error_mean", 0.0)
    if lost > MUCH >= known:
        log.warning(
            f"{column}: its codec loses {lost:.0%} of what the teacher says (relative error, mean of {now.keys:,} "
            "keys): keep it in more bits, such as fp16, after softcache trim has taken it away"
        )
    update_state(folder, lambda state: _with_error(state, column, now, before))
    if column in bounds:
        cache = Cache(folder)
        if column in cache.manifest.state.columns:
            _refuse_broken(cache, column, bounds[column], Draw.of(cache, column).expected)


def refuse_broken(folder: Path, bounds: Mapping[str, Bound]) -> None:
    """Looks at a cache, if nothing of it is missing any more. Errors: ``NumericsError`` where a bound doesn't hold."""
    cache = Cache(folder)
    if bounds and not cache.missing(cache.manifest.columns, cache.views):
        for column, bound in bounds.items():
            _refuse_broken(cache, column, bound, 0)


def _refuse_broken(cache: Cache, column: str, bound: Bound, keys: float) -> None:
    """``keys``: that will have been measured at the end, of all processes."""
    record = cache.manifest.state.columns[column]
    if bound.broken(record, keys):
        codec = option_of(record.codec)
        more = "so that the mean over all keys will be more" if keys > record.error["keys"] else "more"
        raise NumericsError(
            f"{column} in {codec} loses {bound.told(record)}, {more} than {bound}: what is computed stays; the same "
            f"command with {codec} in place of auto goes on, one with another --out and a larger codec begins anew"
        )


def _with_error(state: State, column: str, now: Measured, before: Measured) -> State:
    record = state.columns.get(column)
    if record is None:  # a trim may have taken it away
        return state
    error = dict(record.error)
    keys = int(error.pop("keys", 0))
    whole = Measured(error, keys).changed(now, before)
    measured = dataclasses.replace(record, error={**whole.error, "keys": float(whole.keys)})
    return dataclasses.replace(state, columns={**state.columns, column: measured})
