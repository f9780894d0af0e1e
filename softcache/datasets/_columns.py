"""Columns of an Arrow table as inputs and labels of all rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from softcache.datasets._values import Values, checked_offsets, checked_values
from softcache.errors import DatasetError
from softcache.ragged import offsets_of


def values_of_column(column: Any, where: str) -> Values:
    """An input from a column (``pyarrow.ChunkedArray``) of numbers, (N, 1), or of lists of numbers: (N, n, …) where the
    type says their lengths, else ragged. Lists in lists must be of one length.

    Errors: ``DatasetError`` for columns of anything else, and for rows without a value.
    """
    import pyarrow as pa

    array = _joined(column)
    if array.null_count:
        raise DatasetError(f"{where}: row {int(np.flatnonzero(array.is_null())[0])} has no value: fill it in")
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        offsets = np.asarray(array.offsets).astype(np.int64)
        values = _numbers(array.flatten(), where)  # without what a slice of a longer table has before and after it
        offsets = checked_offsets(offsets - offsets[0], len(values), where)
        return Values(checked_values(values, where, ragged=True), offsets)
    values = _numbers(array, where)
    return Values(checked_values(values[:, None] if values.ndim == 1 else values, where))


def is_of_numbers(kind: Any) -> bool:
    """Whether a column of this Arrow type can be an input: numbers, and lists of them."""
    import pyarrow as pa

    kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    return (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or (is_of_lists(kind) and is_of_numbers(kind.value_type))
    )


def is_of_lists(kind: Any) -> bool:
    import pyarrow as pa

    kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def unpadded(values: dict[str, Values], mask: Values, where: str) -> dict[str, Values]:
    """Rows without the places at their ends that a mask has 0 at: inputs that have a place for each of the mask's.

    A row's mask is 1 and then 0; what stands where it is 0 becomes what rows are filled up with, if it is one number.
    Errors: ``DatasetError`` for other masks, whose zeros can't be left out.
    """
    own = mask.values.reshape(-1) != 0
    if own.all():
        return values
    offsets = _starts(mask)
    lengths = np.add.reduceat(np.append(own, False), offsets[:-1]) * (np.diff(offsets) > 0)
    places = np.arange(len(own)) - np.repeat(offsets[:-1], np.diff(offsets))
    if not np.array_equal(own, places < np.repeat(lengths, np.diff(offsets))):
        raise DatasetError(
            f"{where}: its attention_mask has zeros before ones: tokenize without padding, or with padding_side='right'"
        )
    kept = offsets_of(lengths)
    return {
        name: _shortened(held, own, kept) if np.array_equal(_starts(held), offsets) else held
        for name, held in values.items()
    }


def texts_of_column(column: Any, where: str) -> list[str]:
    """Errors: ``DatasetError`` for columns of anything but text, and for rows without one."""
    import pyarrow as pa

    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise DatasetError(f"{where} is no column of text but of {column.type}")
    texts = column.to_pylist()
    if column.null_count:
        raise DatasetError(f"{where}: row {texts.index(None)} has no text: fill it in")
    return texts


def labels_of_columns(
    columns: Sequence[Any], names: Sequence[str] | None, where: str
) -> tuple[list[Any], tuple[str, ...]]:
    """Labels of several splits, of which the first decides which classes there are, and their names.

    names: of the numbers in the columns, where those are known. Texts are the names of their classes, which are sorted;
    whole numbers without names have numbers for them, and a row without a value is -1. Floating numbers are values to
    be predicted, float32, NaN where there is none.

    Errors: ``DatasetError`` for labels of another type, and for a class that the first split lacks.
    """
    import pyarrow as pa

    if pa.types.is_string(columns[0].type) or pa.types.is_large_string(columns[0].type):
        given = [column.to_pylist() for column in columns]
        known = {name: label for label, name in enumerate(sorted(set(given[0]) - {None}))}
        if unknown := {text for texts in given for text in texts} - set(known) - {None}:
            raise DatasetError(f"{where}: the train split lacks the class {min(unknown)!r}")
        return [[-1 if text is None else known[text] for text in texts] for texts in given], tuple(known)
    if pa.types.is_boolean(columns[0].type):
        columns = [column.cast(pa.int8()) for column in columns]
    if not (pa.types.is_integer(columns[0].type) or pa.types.is_floating(columns[0].type)):
        raise DatasetError(f"{where}: labels are whole numbers or names of classes, found {columns[0].type}")
    if pa.types.is_floating(columns[0].type):
        return [column.cast(pa.float64()).to_numpy().astype(np.float32) for column in columns], ("0",)
    labels = [_joined(column).fill_null(-1).to_numpy(zero_copy_only=False) for column in columns]
    if names is None:
        names = [str(label) for label in range(int(labels[0].max(initial=-1)) + 1)]
    return labels, tuple(names)


def _starts(values: Values) -> npt.NDArray[np.int64]:
    """Where rows begin if they lie end to end, (N + 1,)."""
    if values.offsets is not None:
        return values.offsets
    wide = values.values.shape[1] if values.values.ndim > 1 else 1
    return np.arange(len(values.values) + 1, dtype=np.int64) * wide


def _shortened(values: Values, own: npt.NDArray[np.bool_], offsets: npt.NDArray[np.int64]) -> Values:
    tail = values.values.shape[1 if values.offsets is not None else 2 :]
    places = values.values.reshape(-1, *tail)
    filled = np.unique(places[~own])
    pad = int(filled[0]) if len(filled) == 1 and places.dtype.kind in "iu" else 0
    return dataclasses.replace(values, values=places[own], offsets=offsets, pad=pad)


def _joined(column: Any) -> Any:
    """A column in one piece, in the type in which it is stored."""
    import pyarrow as pa

    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # of no chunks, or of more than fit into one
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    return array.storage if isinstance(array, pa.ExtensionArray) else array


def _numbers(array: Any, where: str) -> npt.NDArray:
    """Numbers (N,), or of lists of one length (N, n, …)."""
    import pyarrow as pa

    if array.null_count:
        raise DatasetError(f"{where} has places without a number: fill them in")
    if pa.types.is_fixed_size_list(array.type):
        size = array.type.list_size
        inner = _numbers(array.flatten(), where)
        return inner.reshape(len(array), size, *inner.shape[1:])
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        sizes = np.unique(np.diff(np.asarray(array.offsets)))
        if len(sizes) > 1:
            raise DatasetError(f"{where}: only the outer lists may have different lengths, others have {sizes[:3]}")
        inner = _numbers(array.flatten(), where)
        return inner.reshape(len(array), int(sizes[0]) if len(sizes) else 0, *inner.shape[1:])
    if not (pa.types.is_integer(array.type) or pa.types.is_floating(array.type)):
        raise DatasetError(f"{where} is no column of numbers but of {array.type}")
    # a copy: Arrow's own memory can't be written to, of which torch warns
    return np.array(array.to_numpy(zero_copy_only=False))
