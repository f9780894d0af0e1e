"""Fixed, stratified, keyed choices of rows: which labels may be used, which rows are held out, which are the test."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from softcache.datasets._hash import MASK, splitmix64
from softcache.errors import UsageError

Mask = npt.NDArray[np.bool_]

# each purpose draws from its own stream, so the held-out rows are no function of the labelled ones
LABELLED_STREAM = 0x6C6162656C6C6564  # "labelled"
HOLDOUT_STREAM = 0x686F6C646F757400  # "holdout"
# 0.07 * 100 is 7.000000000000001 in binary: that must still be 7 rows
ROUNDING = 1e-9


def labelled_rows(labels: npt.ArrayLike, fraction: float, seed: int) -> Mask:
    """The rows whose labels may be used: ``ceil(fraction * n)`` of each class, so at least one.

    labels: (N,) integers, -1 unlabelled (never chosen). fraction: in (0, 1]. Result: (N,) bool. Within a class the
    rows with the smallest hash of (seed, row) are taken, so a larger fraction contains every smaller one.
    Errors: ``UsageError`` for a fraction outside its range.
    """
    if not 0 < fraction <= 1:
        raise UsageError(f"the fraction of labels must be above 0 and at most 1, found {fraction:g}")
    classes = np.asarray(labels)
    rank, count = _ranks(classes, seed, LABELLED_STREAM)
    return (rank < np.ceil(fraction * count - ROUNDING).clip(min=1)) & (classes >= 0)


def holdout_rows(labels: npt.ArrayLike, fraction: float, seed: int) -> Mask:
    """The rows to hold out for validation: ``ceil(fraction * n)`` of each class, but never all of a class.

    labels: (N,) integers; unlabelled rows (-1) count as one class of their own. fraction: in (0, 1). Result: (N,)
    bool. Nested like ``labelled_rows``, from another stream.
    Errors: ``UsageError`` for a fraction outside its range.
    """
    if not 0 < fraction < 1:
        raise UsageError(f"the fraction to hold out must be above 0 and below 1, found {fraction:g}")
    rank, count = _ranks(np.asarray(labels), seed, HOLDOUT_STREAM)
    return rank < np.minimum(np.ceil(fraction * count - ROUNDING).clip(min=1), count - 1)


def rows_for_test(labels: npt.ArrayLike) -> Mask:
    """The test split of a set that comes without one: a fifth of each class, rounded, without a seed.

    labels: (N,) integers. Result: (N,) bool. Within a class, rows in the order of ``splitmix64(row)``: the first
    ``(n + 2) // 5`` of n are the test.
    """
    classes = np.asarray(labels)
    rank, count = _rank_by(splitmix64(np.arange(len(classes), dtype=np.uint64)), classes)
    return rank < (count + 2) // 5


def _ranks(classes: npt.NDArray[np.integer], seed: int, stream: int) -> tuple[npt.NDArray, npt.NDArray]:
    base = splitmix64((seed ^ stream) & MASK)
    return _rank_by(splitmix64(np.arange(len(classes), dtype=np.uint64) ^ base), classes)


def _rank_by(keys: npt.NDArray[np.uint64], classes: npt.NDArray) -> tuple[npt.NDArray, npt.NDArray]:
    """For each row its rank by key within its class, and its class's number of rows: two (N,) int64."""
    _, inverse, counts = np.unique(classes, return_inverse=True, return_counts=True)
    inverse = inverse.reshape(-1)
    order = np.lexsort((keys, inverse))
    first = np.cumsum(counts) - counts  # where each class begins in that order
    rank = np.empty(len(classes), dtype=np.int64)
    rank[order] = np.arange(len(classes)) - first[inverse[order]]
    return rank, counts[inverse].astype(np.int64)
