"""What a cache already holds of a key, to which a teacher that runs again must agree."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import torch

from softcache.cache.agreement.tolerance import compare_values
from softcache.cache.agreement.versions import versions_note
from softcache.cache.chunked_rows import memories
from softcache.cache.column import DIGEST, OFFSET
from softcache.cache.mapping import MappedRows, map_column
from softcache.cache.reader import Cache
from softcache.cache.schema import share_of
from softcache.errors import CacheError, PixelsError

log = logging.getLogger(__name__)


class Recorded:
    """The shards that are there, compared with the same keys computed anew.

    One for a whole dump, as it warns once. Of each view the shard that was looked at last stays mapped until
    ``release``; no file stays open.
    """

    def __init__(self, cache: Cache):
        self._cache = cache
        self._mapped: dict[int, tuple[tuple[str, int], Mapping[str, MappedRows]]] = {}
        self._warned = False

    def check(
        self,
        view: int,
        first: int,
        columns: dict[str, dict[str, np.ndarray]],
        there: list[str],
        said: dict[str, torch.Tensor],
    ) -> None:
        """``columns``: column → array name → rows ``first ...``, of a ragged column their places; ``there``: columns
        whose shards exist for them; ``said``: by column, the values of these rows before their codec, on the CPU.
        Columns that are in all three are compared; pixels with any that is there.

        Errors: ``PixelsError`` where the pixels are not those of the recorded column, ``CacheError`` where what the
        teacher says is not.
        """
        seen = next(iter(columns.values()))["digest"]
        for column in there[:1]:
            wrong = np.flatnonzero(self._rows(view, column, first, len(seen), "digest") != seen)
            if len(wrong):
                raise PixelsError(
                    f"row {first + int(wrong[0])} in view {view} has other {self._cache.input_names} than {column} was "
                    f"computed from: another version of the data, or of a library that decodes it"
                    f"{versions_note(self._cache)}; "
                    "use another --out"
                )
        for column, now in said.items():
            if column in there:
                self._check_values(view, first, column, columns[column], now)

    def release(self, view: int) -> None:
        """Forgets the view's shard: its rows have been compared."""
        self._mapped.pop(view, None)

    def _check_values(
        self, view: int, first: int, column: str, coded: dict[str, np.ndarray], now: torch.Tensor
    ) -> None:
        names = [name for name in coded if name not in (DIGEST, OFFSET)]
        theirs = {name: self._rows(view, column, first, len(coded[DIGEST]), name) for name in names}
        if all(theirs[name].tobytes() == coded[name].astype(theirs[name].dtype).tobytes() for name in names):
            return
        stored = self._cache.layout(column).decode(theirs)
        differs, allowed = compare_values(self._cache, column, stored, now, coded.get(OFFSET))
        beyond = ~(differs <= allowed)  # also where a difference is not a number
        # Of the keys that don't agree if there are any, the one that is furthest beyond its bound.
        worst = int(torch.nan_to_num(differs / allowed, nan=torch.inf).argmax())
        by = f"by {differs[worst]:.1g}, where {allowed[worst]:.1g} is rounding"
        if bool(beyond.any()):
            raise CacheError(
                f"the teacher now says something else than {self._cache.where} has recorded (row {first + worst} in "
                f"view {view}: {column} are off {by}; so are {int(beyond.sum())} of {len(beyond)} keys of this batch): "
                f"its code or a library has changed, or the shard is damaged (softcache verify {self._cache.where}); "
                "use another --out"
            )
        if not self._warned:
            log.warning(
                f"the teacher's {column} differ from the recorded ones in their last bits ({by}): another machine, "
                "library or number of threads than the cache was begun with"
            )
        self._warned = True

    def _rows(self, view: int, column: str, first: int, count: int, name: str) -> np.ndarray:
        """An array's rows, or places of these rows, of one shard or, for a column with smaller shards, of several."""
        size, found = self._cache.manifest.shard_rows(column), []
        of_places = name != DIGEST and self._cache.layout(column).ragged
        while count:
            number, at = first // size, first % size
            take = min(count, size - at)
            held = self._shard(view, column, number)
            begin, end = at, at + take
            if of_places:
                begin, end = (int(held[OFFSET].between(0, place, place + 1)[0]) for place in (at, at + take))
            found.append(held[name].between(0, begin, end))
            first, count = first + take, count - take
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _shard(self, view: int, column: str, number: int) -> Mapping[str, MappedRows]:
        held = self._mapped.get(view)
        if held is None or held[0] != (column, number):
            layout = self._cache.layout(column)
            mapped = map_column([self._cache.shard(view, column, number)], memories(layout.chunking, layout.row))
            held = self._mapped[view] = (column, number), mapped
        return held[1]


def comparable(cache: Cache) -> list[str]:
    """Columns with which what a teacher says can be compared, those of a share of the rows last: one that was converted
    from a codec that had lost something keeps other values, by more than its own codec and the arithmetic explain."""
    found = [name for name in cache.manifest.columns if not cache.manifest.state.columns[name].converted]
    return sorted(found, key=lambda name: share_of(name) is not None)


def first_recorded(cache: Cache) -> tuple[str, int, int, int] | None:
    """Column, view, first row and number of rows of a shard that is there and comparable; None where none is."""
    for view in range(cache.views):
        there = cache.names_in(view)
        for column in comparable(cache):
            for number in range(cache.manifest.shards(column)):
                if cache.shard_path(view, column, number).name in there:
                    return column, view, *cache.shard_range(column, number)
    return None
