"""The kept samples, compared with the same keys' pixels now: what ``--pixels exact`` and ``close`` begin with."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from softcache.cache.agreement.decoders import close_samples, explain_mismatch
from softcache.cache.agreement.digests import CloseRows
from softcache.cache.agreement.versions import versions_note
from softcache.cache.reader import Cache
from softcache.cache.schema import KEPT_SAMPLES
from softcache.datasets._hash import splitmix64
from softcache.errors import PixelsError, UsageError
from softcache.fields import arrays_of
from softcache.inputs import PIXELS
from softcache.views._open import Viewed
from softcache.views.python import Python

log = logging.getLogger(__name__)

CHUNK_BYTES = 2**26  # of pixels that are made and compared at once
PROBED = 64  # rows without a kept sample whose digests are compared before a training with close pixels


Arrays = Mapping[str, np.ndarray | list[np.ndarray]]  # by name (K, …), or K arrays of lengths of their own


@dataclass(frozen=True)
class _Compared:
    """Some kept samples beside the same keys' inputs now: rows (K,), ours and theirs."""

    rows: np.ndarray
    ours: Arrays
    theirs: Arrays

    @property
    def differing(self) -> np.ndarray:
        """Rows whose inputs are not the same, byte for byte."""
        wrong = np.zeros(len(self.rows), bool)
        for name, theirs in self.theirs.items():
            for place, (a, b) in enumerate(zip(self.ours[name], theirs, strict=True)):
                wrong[place] |= a.tobytes() != b.tobytes()
        return self.rows[wrong]

    @property
    def pixels(self) -> tuple[np.ndarray, np.ndarray]:
        """Ours and theirs of pictures, (K, H, W, C)."""
        return np.asarray(self.ours[PIXELS]), np.asarray(self.theirs[PIXELS])


def check_pixels(cache: Cache, viewed: Viewed) -> None:
    """Compares at most 64 of the kept samples, spread over the rows, with the same keys' pixels now.

    Errors: ``PixelsError`` that tells another decoder (close pixels) from another crop or dataset.
    """
    for part in _compare(cache, viewed, few=True):
        if len(part.differing):
            raise PixelsError(
                f"row {int(part.differing[0])} in view 0 has other {cache.input_names} than the teacher saw: "
                f"{_cause(cache, part)}"
            )


def close_rows(cache: Cache, viewed: Viewed, view: int | None) -> CloseRows:
    """The rows that ``--pixels close`` accepts: those whose kept pixels are close to what they are now.

    All kept samples are compared. So are the digests of some rows of ``view`` that have no kept sample, so that a
    training that can't succeed ends here; None for one that compares no digests.

    Errors: ``PixelsError`` where a kept sample is not close, or where rows differ of which no pixels are kept.
    """
    if not viewed.samples.pictures:
        raise UsageError(f"--pixels close: the {viewed.samples.input_names} of {viewed.samples.spec} are no pictures")
    differing = 0
    rows = np.zeros(cache.rows, dtype=bool)
    for part in _compare(cache, viewed, few=False):
        far = part.rows[~close_samples(*part.pixels)]
        if len(far):
            raise PixelsError(
                f"row {int(far[0])} in view 0 has other pixels than the teacher saw, and they are not close: "
                "is this the dataset that the cache was made from?"
            )
        differing += len(part.differing)
        rows[part.rows] = True
    others = _drawn(np.flatnonzero(~rows))
    if view is not None and len(others):
        wrong = int((viewed.digest(viewed.batch(others, view)).numpy() != recorded_digests(cache, view, others)).sum())
        if wrong:
            raise PixelsError(
                f"{wrong} of {len(others)} rows that were drawn from those without a kept sample have other pixels in "
                f"view {view} than the teacher saw, and nothing shows that they are close: {_keep_more(cache)}"
            )
    if differing:
        log.warning(
            f"{cache.where}: {differing:,} of {int(rows.sum()):,} kept samples differ by a few grey levels"
            f"{versions_note(cache)}: accepted by --pixels close"
        )
    return CloseRows(rows, every_view=_shows_every_view(viewed))


def recorded_digests(cache: Cache, view: int, rows: np.ndarray) -> np.ndarray:
    """(B,) uint32: what identifies the pixels of keys of a complete view, from any column that has it."""
    for column in cache.manifest.columns:
        if view in cache.complete_views(column):
            return cache.column(column).gather(view, rows)["digest"]
    raise AssertionError(f"view {view} of {cache.where} is not complete")


def has_digests(cache: Cache, view: int) -> bool:
    """Whether some column has the whole view."""
    return any(view in cache.complete_views(column) for column in cache.manifest.columns)


def refuse_pixels(error: PixelsError, caches: list[Cache], viewed: Viewed, *, close: bool) -> NoReturn:
    """Raises ``error`` again with the likely cause, found from the kept samples. ``close``: whether close pixels are
    accepted where they can be shown."""
    if close:
        for cache in caches:
            if len(cache.samples[0]) < cache.rows:
                raise PixelsError(f"{error}, and nothing shows that they are close: {_keep_more(cache)}") from None
        raise PixelsError(
            f"{error}, and view 0 of the row doesn't show whether they are close: recipes that mix rows or run code of "
            "your own can be compared in view 0 alone"
        ) from None
    for cache in caches:
        for part in _compare(cache, viewed, few=True):
            if len(part.differing):
                raise PixelsError(f"{error}: {_cause(cache, part)}") from None
    notes = [note for cache in caches if (note := versions_note(cache))]
    raise PixelsError(
        f"{error}, though the kept samples agree{notes[0] if notes else ''}: the data has changed in some rows since "
        "the dump, or a recipe of your own gives other pixels for the same key"
    ) from None


def _compare(cache: Cache, viewed: Viewed, *, few: bool) -> Iterator[_Compared]:
    """The kept samples piece by piece, so that memory doesn't grow with their number; ``few``: at most 64 of them."""
    rows, theirs = cache.samples
    places = np.arange(len(rows))
    if few and len(rows) > KEPT_SAMPLES:
        places = np.linspace(0, len(rows) - 1, KEPT_SAMPLES).astype(np.int64)
    count = max(1, CHUNK_BYTES // viewed.row_bytes)
    for first in range(0, len(places), count):
        some = places[first : first + count]
        kept = {
            name: [held[place] for place in some] if isinstance(held, list) else held[some]
            for name, held in theirs.items()
        }
        yield _Compared(rows[some], arrays_of(viewed.batch(rows[some], 0)), kept)


def _drawn(rows: np.ndarray) -> np.ndarray:
    """At most 64 of the rows, in order: those whose hashes are smallest, the same in every run."""
    order = np.argsort(splitmix64(rows.astype(np.uint64)), kind="stable")
    return np.sort(rows[order[:PROBED]])


def _shows_every_view(viewed: Viewed) -> bool:
    """Whether a row's other views are made from its decoded image alone, by integer arithmetic that has a revision."""
    own_code = any(isinstance(augmentation, Python) for augmentation in viewed.recipe.augmentations)
    return viewed.recipe.mix is None and not own_code


def _cause(cache: Cache, part: _Compared) -> str:
    if PIXELS not in part.ours:
        return "is this the dataset that the cache was made from, in the same order?"
    if explain_mismatch(*part.pixels) == "close":
        return (
            f"they are close, as from another version of an image decoder{versions_note(cache)}; use the recorded "
            "versions (softcache info), or accept close pixels with --pixels close"
        )
    return (
        f"they are of another crop or another image{versions_note(cache)}; is this the dataset that the cache was "
        "made from?"
    )


def _keep_more(cache: Cache) -> str:
    return (
        f"{cache.where} keeps the pixels of {len(cache.samples[0]):,} of {cache.rows:,} rows. Where the decoder is "
        f"that of the dump{versions_note(cache)}, run the same softcache dump again with --keep-samples all"
    )
