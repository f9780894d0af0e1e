"""Columns of a table that are labels of other kinds than classes: ``binary=smiling+glasses``, ``values=age``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from softcache.datasets._labels import UNKNOWN, Labels, checked_labels
from softcache.errors import DatasetError, UsageError

_ANSWERS = {"1": 1, "true": 1, "yes": 1, "0": 0, "false": 0, "no": 0, "": UNKNOWN}


@dataclass(frozen=True)
class Outputs:
    """``kind``: ``binary`` or ``values``; ``names``: of the columns, which are those of the outputs."""

    kind: str
    names: tuple[str, ...]

    @property
    def option(self) -> str:
        """In a dataset's spec: ``,binary=smiling+glasses``."""
        return f",{self.kind}={'+'.join(self.names)}"

    def refuse_lacking(self, there: Sequence[str], owner: str) -> None:
        """Errors: ``DatasetError`` for a column that isn't there."""
        for name in self.names:
            if there.count(name) != 1:
                how = "more than one column" if name in there else "no column"
                raise DatasetError(f"{owner} has {how} {name!r}: it has {', '.join(there)}")

    def of_texts(self, columns: Mapping[str, Sequence[str]], places: Sequence[str], owner: str) -> Labels:
        """(N, K) uint8 or (N, K) float32, of one column of values (N,): an empty text is no label.

        Errors: ``DatasetError`` that names the place of a text that is none.
        """
        found = np.empty((len(places), len(self.names)), np.uint8 if self.kind == "binary" else np.float32)
        for k, name in enumerate(self.names):
            for row, text in enumerate(columns[name]):
                try:
                    found[row, k] = _answer(text) if self.kind == "binary" else _number(text)
                except (KeyError, ValueError):
                    wanted = "1, 0, true, false, yes or no" if self.kind == "binary" else "a finite number"
                    raise DatasetError(f"{owner}, {places[row]}: {name} is {text.strip()!r}, not {wanted}") from None
        return self._checked(found, owner)

    def of_columns(self, columns: Sequence[Any], owner: str) -> Labels:
        """The same of columns of an Arrow table, one for each name, of numbers or truth values; null is no label."""
        import pyarrow as pa

        found = []
        for name, column in zip(self.names, columns, strict=True):
            kind = column.type
            if not (pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)):
                raise DatasetError(f"{owner}: {name} is a column of {kind}, not of numbers")
            numbers = column.cast(pa.int8()) if pa.types.is_boolean(kind) else column
            array = numbers.cast(pa.float64()).to_numpy()  # null is NaN
            if self.kind == "binary":
                wrong = array[~np.isin(array, (0, 1)) & ~np.isnan(array)]
                if len(wrong):
                    raise DatasetError(f"{owner}: {name} has {wrong[0]:g}, not 0, 1 or nothing")
                array = np.where(np.isnan(array), UNKNOWN, array)
            found.append(array.astype(np.uint8 if self.kind == "binary" else np.float32))
        return self._checked(np.stack(found, 1), owner)

    def _checked(self, labels: Labels, owner: str) -> Labels:
        one = self.kind == "values" and labels.shape[1] == 1
        return checked_labels(labels[:, 0] if one else labels, len(labels), None, owner)


def asked_outputs(binary: str | None, values: str | None, source: str) -> Outputs | None:
    """What ``binary=a+b`` or ``values=a`` asks for; None where neither is given.

    Errors: ``UsageError`` where both are, and for a column that is named twice or has no name.
    """
    if binary is not None and values is not None:
        raise UsageError(f"{source}: labels are of one kind: give binary or values, not both")
    text = binary if binary is not None else values
    if text is None:
        return None
    names = tuple(name.strip() for name in text.split("+"))
    if not all(names) or len(set(names)) < len(names):
        raise UsageError(f"{source}: {text!r} must name each column once, a+b")
    return Outputs("binary" if binary is not None else "values", names)


def _answer(text: str) -> int:
    return _ANSWERS[text.strip().lower()]


def _number(text: str) -> float:
    number = float(text) if text.strip() else np.nan
    if np.isinf(number) or np.isinf(np.float32(number)):
        raise ValueError(text)
    return number
