"""The random numbers of a key ``(index, view)``: a counter-based hash without a generator or a state.

All arithmetic is on uint64, so a key draws the same numbers on every machine, in any order and any batch.
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

    indices: (B,) int64, rows. position: the place of the augmentation in its recipe, so that two augmentations draw
    different numbers.

    >>> first, again = (Keys(seed=7, indices=np.array([3, 5]), view=1, position=0).words(2) for _ in range(2))
    >>> first.shape, bool((first == again).all())
    ((2, 2), True)
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
    """Integers in [0, below), with below ≤ 2**32: the high half of the product with the upper 32 bits.

    >>> integers(np.array([0, 2**63, 2**64 - 1], np.uint64), 10).tolist()
    [0, 5, 9]
    """
    return (((words >> np.uint64(32)) * np.asarray(below, dtype=np.uint64)) >> np.uint64(32)).astype(np.int64)


def chances(words: UInt64, p: float) -> npt.NDArray[np.bool_]:
    """True with probability ``p``, rounded to a multiple of 1/2**32."""
    return (words >> np.uint64(32)) < np.uint64(round(p * 2**32))
