"""From a key ``(index, view)`` to the numbers of its augmentation: a counter-based hash, no generator, no state.

Everything here is integer arithmetic on uint64, so a key draws the same numbers on every machine, in any order and
any batch.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from softcache.datasets._hash import GAMMA, MASK, UInt64, splitmix64

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Keys:
    """A batch of keys of one view, as one augmentation of a recipe sees them.

    indices: (B,) int64 rows; position: the augmentation's place in its recipe, so that two of them draw different
    numbers.
    """

    seed: int
    indices: Int64
    view: int
    position: int

    @functools.cached_property
    def states(self) -> UInt64:
        """(B,) uint64: the hash of (seed, view, position, index)."""
        return splitmix64(_chained(self.seed, self.view, self.position) ^ self.indices.astype(np.uint64))

    def part(self, rows: slice) -> Keys:
        """Some of these keys."""
        return Keys(self.seed, self.indices[rows], self.view, self.position)

    def words(self, count: int) -> UInt64:
        """(B, count) uint64: the first ``count`` outputs of a SplitMix64 that starts at each key's state."""
        steps = np.arange(count, dtype=np.uint64) * np.uint64(GAMMA)
        return splitmix64(self.states[:, None] + steps)


@functools.lru_cache(maxsize=1024)
def _chained(*parts: int) -> np.uint64:
    state = 0
    for part in parts:
        state = int(splitmix64(state ^ (part & MASK)))
    return np.uint64(state)


def integers(words: UInt64, below: int | Int64) -> Int64:
    """Integers in [0, below), by multiplying the upper 32 bits and keeping the high half; below ≤ 2**32."""
    return (((words >> np.uint64(32)) * np.asarray(below, dtype=np.uint64)) >> np.uint64(32)).astype(np.int64)


def chances(words: UInt64, p: float) -> npt.NDArray[np.bool_]:
    """True with probability ``p``, to the next 1/2**32."""
    return (words >> np.uint64(32)) < np.uint64(round(p * 2**32))


def units(words: UInt64) -> npt.NDArray[np.float64]:
    """Floats in [0, 1) of 53 random bits; exact, as the conversion and the power of two don't round."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
