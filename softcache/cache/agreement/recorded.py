"""What a cache already holds of a key, to which a teacher that runs again must agree."""

from __future__ import annotations

import logging
import os

import numpy as np
import torch

from softcache.cache.mapping import map_shards
from softcache.cache.reader import Cache
from softcache.cache.schema import LOGITS
from softcache.errors import CacheError, PixelsError

log = logging.getLogger(__name__)

# |recomputed - recorded| of a batch's logits, relative to their spread. Another machine, library or number of threads
# changes the last bits, a millionth in float32 and a hundredth in half precision (where a rounding may then fall to the
# other side in a codec, too); a teacher whose code or input has changed is off by far more.
TOLERANCE, TOLERANCE_HALF = 1e-3, 3e-2


class Recorded:
    """The shards of logits or hints that are there, compared with the same keys computed anew.

    One for a whole dump, as it warns once. Of each view the shard that was looked at last stays mapped until
    ``release``; no file stays open.
    """

    def __init__(self, cache: Cache):
        self._cache = cache
        self._mapped: dict[int, tuple[tuple[str, int], dict[str, np.ndarray]]] = {}
        self._warned = False

    def check(self, view: int, first: int, columns: dict[str, dict[str, np.ndarray]], there: list[str]) -> None:
        """``columns``: column → array name → rows ``first ...``; ``there``: columns whose shards exist for them.

        Errors: ``PixelsError`` where the pixels are not those of the recorded column, ``CacheError`` where the
        teacher's logits are not.
        """
        seen = next(iter(columns.values()))["digest"]
        for column in there[:1]:
            wrong = np.flatnonzero(self._rows(view, column, first, len(seen), "digest") != seen)
            if len(wrong):
                raise PixelsError(
                    f"row {first + int(wrong[0])} in view {view} has other pixels than {column} was computed from: "
                    "another version of the data, or of a library that decodes it; use another --out"
                )
        if LOGITS in columns and LOGITS in there:
            self._check_logits(view, first, columns[LOGITS])

    def release(self, view: int) -> None:
        """Forgets the view's shard: its rows have been compared."""
        self._mapped.pop(view, None)

    def _check_logits(self, view: int, first: int, ours: dict[str, np.ndarray]) -> None:
        names = [name for name in ours if name != "digest"]
        theirs = {name: self._rows(view, LOGITS, first, len(ours[name]), name) for name in names}
        if all(theirs[name].tobytes() == ours[name].astype(theirs[name].dtype).tobytes() for name in names):
            return
        distance = self._distance(theirs, {name: ours[name] for name in names})
        numerics = self._cache.manifest.identity.teacher.numerics
        allowed = TOLERANCE_HALF if numerics.amp != "off" or numerics.tf32 else TOLERANCE
        if not distance <= allowed:  # also where it is not a number
            raise CacheError(
                f"the teacher now says something else than {self._cache.folder} has recorded (view {view}, rows from "
                f"{first}: logits are off by {distance:.1g} of their spread, at most {allowed:g} is rounding): its "
                f"code or a library has changed, or the shard is damaged (softcache verify {self._cache.folder}); use "
                "another --out"
            )
        if not self._warned:
            log.warning(
                f"the teacher's logits differ from the recorded ones in their last bits (by {distance:.1g} of their "
                "spread): another machine, library or number of threads than the cache was begun with"
            )
        self._warned = True

    def _distance(self, theirs: dict[str, np.ndarray], ours: dict[str, np.ndarray]) -> float:
        """Norm of the difference over that of the recorded logits, each row's mean taken off."""
        recorded, now = (self._decoded(arrays) for arrays in (theirs, ours))
        return float((now - recorded).norm() / recorded.norm().clamp_min(1e-30))

    def _decoded(self, arrays: dict[str, np.ndarray]) -> torch.Tensor:
        logits = self._cache.decode(arrays).double()
        return logits - logits.mean(1, keepdim=True)

    def _rows(self, view: int, column: str, first: int, count: int, name: str) -> np.ndarray:
        """Rows of one shard or, for a column with smaller shards, of several."""
        size, found = self._cache.manifest.shard_rows(column), []
        while count:
            number, at = first // size, first % size
            take = min(count, size - at)
            found.append(self._shard(view, column, number)[name][at : at + take])
            first, count = first + take, count - take
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _shard(self, view: int, column: str, number: int) -> dict[str, np.ndarray]:
        held = self._mapped.get(view)
        if held is None or held[0] != (column, number):
            mapped = map_shards([self._cache.shard(view, column, number)])
            maps = {name: rows.parts[0] for name, rows in mapped.items()}
            held = self._mapped[view] = (column, number), maps
        return held[1]


def first_recorded(cache: Cache, batch: int) -> tuple[int, int, int] | None:
    """View, first row and number of rows of one batch whose logits are there; None where no shard is."""
    for view in range(cache.views):
        try:
            there = set(os.listdir(cache.folder / f"view-{view:04d}"))
        except FileNotFoundError:
            continue
        for number in range(cache.manifest.shards(LOGITS)):
            if cache.shard_path(view, LOGITS, number).name in there:
                first, rows = cache.shard_range(LOGITS, number)
                return view, first, min(batch, rows)
    return None
