"""The counter-based hash from which everything keyed draws: the same integers on every machine."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

GAMMA = 0x9E3779B97F4A7C15
MASK = 0xFFFFFFFFFFFFFFFF

UInt64 = npt.NDArray[np.uint64]


def splitmix64(x: npt.ArrayLike) -> UInt64:
    """SplitMix64 of a state: ``finalizer(x + gamma)``, all modulo 2**64, elementwise.

    x: uint64 of any shape, or a Python int in 0..2**64-1. Result: uint64 of the same shape.
    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, with the
    constants of variant 13 of Stafford's mixers. ``splitmix64(seed + k * GAMMA)`` is the k-th output (from 0).
    """
    # numpy warns on overflow of scalars but not of arrays, hence at least one dimension while computing
    state = np.asarray(x, dtype=np.uint64)
    return finalize(np.atleast_1d(state) + np.uint64(GAMMA)).reshape(state.shape)


def finalize(x: npt.ArrayLike) -> UInt64:
    """The finalizer of SplitMix64 without the addition of gamma, a bijection on uint64. Same shapes as above."""
    given = np.asarray(x, dtype=np.uint64)
    z = np.atleast_1d(given).copy()
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z.reshape(given.shape)
