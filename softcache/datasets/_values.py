"""Inputs that are no pictures: for each row an array of a fixed shape, or one that has a length of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from softcache.datasets._pixels import MEASURED_BYTES, Statistics, row_chunks
from softcache.errors import DatasetError
from softcache.fields import Fields
from softcache.inputs import DTYPES, MAX_LENGTH, TOKENS, InputField, go_together, mask_names
from softcache.ragged import counts_of, offsets_of, padded, runs_of

MAX_MEASURED = 4096  # numbers of the last axis that get a mean of their own
Int64 = npt.NDArray[np.int64]


@dataclass
class Values:
    """One input in all rows.

    values: (N, …); or with ``offsets``, (N + 1,) int64, (M, …), of which row i has those from ``offsets[i]`` to before
    ``offsets[i + 1]``. pad: what rows of a batch are filled up with to the longest of them. mapped: the .npy file
    behind ``values``: then pickling keeps the path, not the values.
    """

    values: npt.NDArray
    offsets: Int64 | None = None
    pad: int = 0
    mapped: Path | None = None

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.values) if self.offsets is None else len(self.offsets) - 1

    @property
    def field(self) -> InputField:
        """The dtype and the shape of one sample."""
        tail = list(self.values.shape[1:])
        return InputField(self.values.dtype.name, tail if self.offsets is None else [None, *tail], self.pad)

    @property
    def lengths(self) -> Int64 | None:
        """(N,) int64 of ragged values, else None."""
        return None if self.offsets is None else np.diff(self.offsets)

    @property
    def row_bytes(self) -> int:
        """Of the longest row."""
        one = self.values[:1].nbytes or self.values.dtype.itemsize
        return one if self.lengths is None else one * int(self.lengths.max(initial=1))

    def batch(self, rows: Int64) -> tuple[torch.Tensor, Int64 | None]:
        """Rows (B,) → (B, …), or of ragged values (B, L, …), filled up to the longest of them, and their lengths (B,).

        There is at least one place, so that rows that are all empty are no tensors without numbers.
        """
        if self.offsets is None:
            return torch.from_numpy(np.asarray(self.values[rows])), None
        offset = offsets_of(self.offsets[rows + 1] - self.offsets[rows])
        own = torch.from_numpy(np.asarray(self.values[runs_of(self.offsets[rows], offset)]))
        return padded(own, offset, self.pad), counts_of(offset)

    def subset(self, rows: Int64) -> Values:
        """These rows alone, copied into memory."""
        if self.offsets is None:
            return Values(np.asarray(self.values[rows]), None, self.pad)
        offset = offsets_of(self.offsets[rows + 1] - self.offsets[rows])
        return Values(np.asarray(self.values[runs_of(self.offsets[rows], offset)]), offset, self.pad)

    def content(self, name: str) -> Iterator[bytes | memoryview]:
        """Name, dtype, shape and bytes, for a fingerprint of the samples."""
        yield json.dumps([name, self.values.dtype.str, self.values.shape, self.pad]).encode()
        if self.offsets is not None:
            yield np.ascontiguousarray(self.offsets, "<i8").data
        for chunk in row_chunks(self.values):
            yield np.ascontiguousarray(chunk).data

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "values": None} if self.mapped is not None else dict(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.mapped is not None:  # each worker maps the file again: the pages are shared, nothing is copied
            self.values = map_values(self.mapped)


def masks_of(values: Mapping[str, Values]) -> dict[str, str]:
    """Name of a mask → the input whose rows' lengths it shows, see ``mask_names``.

    Errors: ``DatasetError`` where an input has the name of a mask, and for inputs that go with ``input_ids`` and have
    rows of other lengths.
    """
    ragged = {name: held.lengths for name, held in values.items() if held.lengths is not None}
    masks = mask_names(list(ragged))
    if taken := next((mask for mask in masks if mask in values), None):
        raise DatasetError(
            f"an input is called {taken}, which is what softcache calls the mask of rows that have lengths of their "
            "own: leave it out, and cut every row to its own length"
        )
    for name, lengths in ragged.items():
        if go_together(name, list(ragged)) and not np.array_equal(lengths, ragged[TOKENS]):
            row = int((lengths != ragged[TOKENS]).argmax())
            raise DatasetError(
                f"row {row} has {lengths[row]} places of {name} and {ragged[TOKENS][row]} of {TOKENS}, which go "
                "together: give it another name, that doesn't end in _ids"
            )
    return masks


def batch_of(values: Mapping[str, Values], rows: Int64, masks: Mapping[str, str]) -> Fields:
    """All inputs of some rows. ``masks``: as ``masks_of`` gives them."""
    tensors, lengths = {}, {}
    for name, held in values.items():
        tensors[name], own = held.batch(rows)
        if own is not None:
            lengths[name] = torch.from_numpy(own)
    return Fields(tensors, lengths, masks, {name: held.pad for name, held in values.items()})


def checked_values(values: npt.NDArray, where: str, *, ragged: bool = False) -> npt.NDArray:
    """(N, …) of at least one axis beside the rows; with ``ragged`` (M, …) of the rows end to end.

    Errors: ``DatasetError`` for arrays without one, for dtypes that no network takes, and for numbers that are not
    finite.
    """
    if values.ndim < (1 if ragged else 2) or not all(values.shape[1:]):
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
                what = "place" if ragged else "row"
                raise DatasetError(
                    f"{where}: {what} {first + int(wrong[0])} has numbers that are not finite: fill them in"
                )
            first += len(chunk)
    return values


def values_of(rows: Any, where: str) -> Values:
    """An input from an array (N, …), or from N rows that have lengths of their own: a list of lists or of arrays.

    Rows of a list may be of one length too; they are then ragged all the same, as other splits may have others.
    Errors: ``DatasetError`` for rows that can't lie end to end, and as ``checked_values``.
    """
    if isinstance(rows, (np.ndarray, torch.Tensor)):
        return Values(checked_values(np.asarray(rows), where))
    try:
        arrays = [np.asarray(row) for row in rows]
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{where}: expected an array, or a list of rows of numbers: {error}") from None
    first = next((array for array in arrays if array.size), None)
    if first is None:
        raise DatasetError(f"{where}: all rows are empty")
    for number, array in enumerate(arrays):
        if array.ndim < 1 or (array.size and (array.shape[1:], array.dtype) != (first.shape[1:], first.dtype)):
            raise DatasetError(
                f"{where}: row {number} is {array.dtype} {array.shape}, another {first.dtype} {first.shape}: only the "
                "first axis may be of any length"
            )
    offsets = offsets_of(np.fromiter(map(len, arrays), np.int64))
    joined = np.concatenate([array for array in arrays if array.size])
    return Values(checked_values(joined, where, ragged=True), checked_offsets(offsets, len(joined), where))


def checked_offsets(offsets: npt.NDArray, places: int, where: str) -> Int64:
    """(N + 1,) int64: where rows begin in an array of so many places, and where the last one ends.

    Errors: ``DatasetError`` where they don't begin at 0, fall, or don't end at the last place.
    """
    if offsets.ndim != 1 or len(offsets) < 2 or offsets.dtype.kind not in "iu":
        raise DatasetError(f"{where}: offsets are whole numbers (N + 1,), found {offsets.dtype} {offsets.shape}")
    found = offsets.astype(np.int64)
    if found[0] != 0 or found[-1] != places:
        raise DatasetError(f"{where}: offsets go from {found[0]} to {found[-1]}, the values from 0 to {places}")
    lengths = np.diff(found)
    if lengths.min() < 0:
        raise DatasetError(f"{where}: row {int(lengths.argmin())} ends before it begins")
    if lengths.max() > MAX_LENGTH:
        raise DatasetError(f"{where}: row {int(lengths.argmax())} has more than {MAX_LENGTH:,} places")
    return found


def measure_values(values: npt.NDArray) -> Statistics:
    """Mean and deviation of (N, …), of each number of a single axis that has up to 4,096, else of all together.

    Whole numbers are left as they are: 0 and 1. Splits above 256 MiB are measured on evenly spaced rows. What is
    constant gets a deviation of 1.
    """
    if values.dtype.kind != "f" or not len(values):
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


def measure_inputs(values: Mapping[str, Values]) -> Statistics:
    """Mean and deviation of the one input of floating numbers. Of several none is standardized: 0 and 1."""
    floating = [held.values for held in values.values() if held.values.dtype.kind == "f"]
    return measure_values(floating[0]) if len(floating) == 1 else ((0.0,), (1.0,))


def map_values(path: Path) -> npt.NDArray:
    """The values of a .npy file, memory-mapped; the file can't be changed through them."""
    # copy-on-write rather than read-only, because torch warns of arrays that aren't writable
    return np.lib.format.open_memmap(path, mode="c")
