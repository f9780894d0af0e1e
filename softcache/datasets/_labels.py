"""Labels of three kinds: one class a row, several outputs that are each yes or no, or numbers.

``classes``: (N,) int32, -1 where a row has none. ``binary``: (N, K) uint8, 0 or 1, 255 for none. ``values``: (N,) or
(N, K) float32, NaN for none. The dtype says which kind it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from softcache.errors import DatasetError

Labels = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

UNKNOWN = 255  # a binary label that a row doesn't have
_NONE = {"classes": -1, "binary": UNKNOWN, "values": np.nan}
_KIND = {"int32": "classes", "uint8": "binary", "float32": "values"}
_AXES = {"classes": (1,), "binary": (2,), "values": (1, 2)}


def label_kind(labels: Labels) -> str:
    """``classes``, ``binary`` or ``values``. Labels that are none of them are a mistake of whoever made them."""
    kind = _KIND[labels.dtype.name]
    assert labels.ndim in _AXES[kind], (labels.dtype, labels.shape)
    return kind


def known_labels(labels: Labels) -> Mask:
    """Which labels are there, in the shape of ``labels``.

    >>> known_labels(np.array([[0, 255]], np.uint8)).tolist()
    [[True, False]]
    """
    kind = label_kind(labels)
    if kind == "values":
        return ~np.isnan(labels)
    return np.asarray(labels >= 0 if kind == "classes" else labels != UNKNOWN)


def labelled(labels: Labels) -> Mask:
    """(N,): the rows that have a label, of several outputs at least one."""
    known = known_labels(labels)
    return known if known.ndim == 1 else np.asarray(known.any(1))


def hidden(labels: Labels, rows: Mask) -> Labels:
    """A copy in which these rows, (N,) bool, have no label."""
    kept = labels.copy()
    kept[rows] = _NONE[label_kind(labels)]
    return kept


def strata(labels: Labels) -> npt.NDArray[np.integer]:
    """(N,) integers: what a fixed share of the rows is drawn from, one after the other. Each class is one; rows with
    labels of another kind are all one, 0. Rows without a label have -1."""
    if label_kind(labels) == "classes":
        return labels
    return np.where(labelled(labels), 0, -1)


def differing_rows(one: Labels, other: Labels) -> Mask:
    """(N,): the rows whose labels differ; all of them where the kinds do."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return np.ones(len(one), dtype=bool)
    differs = one != other
    if label_kind(one) == "values":
        differs &= ~(np.isnan(one) & np.isnan(other))
    return np.asarray(differs if differs.ndim == 1 else differs.any(1))


def label_bytes(labels: Labels) -> bytes:
    """The bytes that the hash of labels is taken over: little-endian."""
    return np.ascontiguousarray(labels, labels.dtype.newbyteorder("<")).tobytes()


def told_label(labels: Labels, row: int, classes: tuple[str, ...]) -> str:
    """A row's label for people: its class by name, the outputs that are 1, or its numbers."""
    kind = label_kind(labels)
    if not labelled(labels[row : row + 1])[0]:
        return "no label"
    if kind == "classes":
        label = int(labels[row])
        return repr(classes[label]) if label < len(classes) else f"class {label}"
    if kind == "values":
        return ", ".join(f"{number:g}" for number in np.atleast_1d(labels[row]))
    names = [classes[k] if k < len(classes) else f"output {k}" for k in np.flatnonzero(labels[row] == 1)]
    return ", ".join(map(repr, names)) or "none of the outputs"


def label_width(labels: Labels) -> int:
    """How many classes there are by the largest label, or how many outputs.

    >>> label_width(np.array([2, -1], np.int32)), label_width(np.zeros((2, 5), np.uint8))
    (3, 5)
    """
    if label_kind(labels) == "classes":
        return int(labels.max(initial=-1)) + 1
    return 1 if labels.ndim == 1 else int(labels.shape[1])


def checked_labels(labels: Any, rows: int, classes: int | None, where: str) -> Labels:
    """Labels of the kind that their dtype and shape say: whole numbers (rows,) are classes, uint8 or bool (rows, K)
    binary, float32 (rows,) or (rows, K) values.

    ``classes``: how many classes or outputs there are, None: not known. Errors: ``DatasetError`` that says what was
    found.
    """
    array = np.asarray(labels)
    if array.dtype.name == "float32":
        return _checked_values(array, rows, classes, where)
    if array.ndim == 2 and array.dtype.name in ("bool", "uint8"):
        return _checked_binary(array, rows, classes, where)
    if array.shape != (rows,):
        several = "; several outputs of yes or no are saved as uint8 (rows, K), several numbers as float32 (rows, K)"
        raise DatasetError(
            f"{where}: expected labels of shape ({rows},) for {rows} rows, found {array.dtype} {array.shape}"
            f"{several if array.ndim == 2 and len(array) == rows else ''}"
        )
    if array.dtype.kind not in "iu":
        raise DatasetError(
            f"{where}: labels must be whole numbers, found {array.dtype}; numbers that are to be predicted are saved "
            "as float32, several outputs of yes or no as uint8 (rows, K)"
        )
    limit = np.iinfo(np.int32).max if classes is None else classes
    # uint64 stays unsigned: as int64, 2**64-1 would be -1, the mark of a row without a label
    wide = array.astype(np.uint64 if array.dtype.kind == "u" else np.int64)
    below = wide < -1 if wide.dtype.kind == "i" else np.zeros(rows, dtype=bool)
    wrong = np.flatnonzero(below | (wide >= wide.dtype.type(limit)))
    if len(wrong):
        row = int(wrong[0])
        allowed = "-1 (unlabelled) or more" if classes is None else f"-1 (unlabelled) to {classes - 1}"
        raise DatasetError(f"{where}: label {array[row]} of row {row} is not in {allowed}")
    return array.astype(np.int32)


def _checked_binary(array: npt.NDArray, rows: int, outputs: int | None, where: str) -> Labels:
    _check_shape(array, rows, outputs, where)
    numbers = array.astype(np.uint8)
    wrong = np.argwhere((numbers > 1) & (numbers != UNKNOWN))
    if len(wrong):
        row, output = wrong[0]
        raise DatasetError(
            f"{where}: label {numbers[row, output]} of row {row}, output {output} is not 0, 1 or {UNKNOWN} (no label)"
        )
    return numbers


def _checked_values(array: npt.NDArray, rows: int, outputs: int | None, where: str) -> Labels:
    _check_shape(array if array.ndim == 2 else array[:, None], rows, outputs, where)
    wrong = np.flatnonzero(np.isinf(array).reshape(rows, -1).any(1))
    if len(wrong):
        raise DatasetError(f"{where}: label {array[wrong[0]]} of row {wrong[0]} is infinite; NaN is a row without one")
    return array.astype(np.float32)


def _check_shape(array: npt.NDArray, rows: int, outputs: int | None, where: str) -> None:
    if array.ndim != 2 or len(array) != rows or not array.shape[1]:
        raise DatasetError(f"{where}: expected labels of shape ({rows}, K) for {rows} rows, found {array.shape}")
    if outputs is not None and array.shape[1] != outputs:
        raise DatasetError(f"{where}: labels of {array.shape[1]} outputs, classes.txt names {outputs}")


def numbered(count: int) -> tuple[str, ...]:
    """Class names for a set that has none: ``("0", "1", …)``."""
    return tuple(str(number) for number in range(count))
