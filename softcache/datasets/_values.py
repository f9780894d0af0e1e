"""Inputs that are no pictures: one array of a fixed shape for each row, whatever its numbers mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from softcache.datasets._pixels import MEASURED_BYTES, Statistics, row_chunks
from softcache.errors import DatasetError
from softcache.inputs import DTYPES

MAX_MEASURED = 4096  # numbers of the last axis that get a mean of their own


def checked_values(values: npt.NDArray, where: str) -> npt.NDArray:
    """(N, …) of at least one axis beside the rows.

    Errors: ``DatasetError`` for arrays without one, for dtypes that no network takes, and for numbers that are not
    finite.
    """
    if values.ndim < 2 or not all(values.shape[1:]):
        raise DatasetError(f"{where}: expected an array of rows (N, …), found shape {values.shape}")
    if not values.dtype.isnative:
        raise DatasetError(f"{where}: {values.dtype} has the bytes of another machine: save it with its native dtype")
    if values.dtype.name not in DTYPES:
        raise DatasetError(f"{where}: {values.dtype} is no dtype that a network takes: {', '.join(DTYPES)}")
    if values.dtype.kind == "f":
        first = 0
        for chunk in row_chunks(values):
            wrong = np.flatnonzero(~np.isfinite(chunk).reshape(len(chunk), -1).all(1))
            if len(wrong):
                raise DatasetError(
                    f"{where}: row {first + int(wrong[0])} has numbers that are not finite: fill them in"
                )
            first += len(chunk)
    return values


def measure_values(values: npt.NDArray) -> Statistics:
    """Mean and deviation of (N, …), of each number of a single axis that has up to 4,096, else of all together.

    Whole numbers are left as they are: 0 and 1. Splits above 256 MiB are measured on evenly spaced rows. What is
    constant gets a deviation of 1.
    """
    if values.dtype.kind != "f":
        return (0.0,), (1.0,)
    step = max(1, -(-values.nbytes // MEASURED_BYTES))
    own = values.ndim == 2 and values.shape[1] <= MAX_MEASURED
    count, total, squares = 0, 0.0, 0.0
    shift = np.asarray(values[0], np.float64) if own else float(np.mean(values[0], dtype=np.float64))
    for chunk in row_chunks(values[::step]):
        # around the first row, so that little is lost of a deviation that is small beside the mean
        part = np.asarray(chunk, np.float64) - shift
        part = part if own else part.reshape(-1, 1)
        count += len(part)
        total, squares = total + part.sum(0), squares + (part * part).sum(0)
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean * mean, 0))
    deviation = np.where(deviation > 0, deviation, 1.0)
    return tuple(np.ravel(mean + shift).tolist()), tuple(np.ravel(deviation).tolist())


def map_values(path: Path) -> npt.NDArray:
    """The values of a .npy file, memory-mapped; the file can't be changed through them."""
    # copy-on-write rather than read-only, because torch warns of arrays that aren't writable
    return np.lib.format.open_memmap(path, mode="c")
