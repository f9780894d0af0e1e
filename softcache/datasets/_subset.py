"""Fixed, stratified, keyed choices of rows: which labels may be used, which rows are held out, which are the test."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

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


def held_out_files(names: Sequence[str], labels: npt.ArrayLike, fraction: float) -> Mask:
    """The files that are the test split where a share of all files is to be: those with a hash below the fraction.

    names: N paths within the dataset. labels: (N,) integers. fraction: in [0, 1). Result: (N,) bool. The hash is of a
    file's path alone, so that its split stays what it is when other files come or go, and each class has about the
    share of its files in the test split. The one exception: of a class whose files would all be held out, the one
    with the largest hash stays in train.
    """
    classes = np.asarray(labels)
    keys = np.array([_path_hash(name) for name in names], dtype=np.uint64)
    held = keys < np.uint64(int(fraction * 2**64))
    for label in np.setdiff1d(classes, classes[~held]):
        rows = np.flatnonzero(classes == label)
        held[rows[np.argmax(keys[rows])]] = False
    return np.asarray(held)


def _path_hash(name: str) -> int:
    """The first 64 bits of the SHA-256 of a path's bytes."""
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8], "big")


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
