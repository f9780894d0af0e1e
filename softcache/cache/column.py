"""A column: what a cache keeps of one signal of the teacher for each key, and how it lies on disk."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from softcache.cache.schema import ColumnRecord
from softcache.cache.shard import Arrays
from softcache.errors import UsageError

DIGEST = "digest"  # of a key's inputs: an array of every column, beside those of its codec


@dataclass(frozen=True)
class Column:
    """``name``: of an output of the teacher, such as ``logits``, or ``hint.LAYER``. ``kind``: what its last axis is:
    ``classes``, ``binary`` or ``values``. ``shape``: of one key's values. ``codec``: how they are kept.
    ``shard_rows``: rows a shard."""

    name: str
    kind: str
    shape: tuple[int, ...]
    codec: Any
    shard_rows: int

    @classmethod
    def of(cls, name: str, record: ColumnRecord, codec: Any) -> Column:
        """``codec``: as ``open_codec`` gives the one that the record names."""
        return cls(name, record.kind, tuple(record.shape), codec, record.shard_rows)

    @property
    def width(self) -> int:
        """How many classes, labels or numbers its last axis has."""
        return self.shape[-1] if self.shape else 1

    def arrays(self, rows: int) -> Arrays:
        """What a shard of so many rows holds: dataset name → dtype and shape. ``digest`` is that of the pixels."""
        coded = {name: (dtype, (rows, *tail)) for name, (dtype, tail) in self._coded.items()}
        return {DIGEST: ("<u4", (rows,)), **coded}

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, its digest included."""
        return sum(math.prod(shape) * np.dtype(dtype).itemsize for dtype, shape in self.arrays(1).values())

    def encode(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Values (B, …) on any device → arrays with one row a key, by the names that they have in a shard."""
        coded: dict[str, torch.Tensor] = self.codec.encode(values)
        return coded

    def decode(self, arrays: Mapping[str, np.ndarray | torch.Tensor]) -> torch.Tensor:
        """The other way: values (B, …) float32, on the same device. Digests are not looked at.

        Errors: ``UsageError`` where the arrays are not those of this column.
        """
        coded = {name: _tensor(array) for name, array in arrays.items() if name != DIGEST}
        if {name: tuple(array.shape[1:]) for name, array in coded.items()} != self._tails:
            raise UsageError(
                f"the column {self.name!r} has {_told(self._tails)} of each key, not "
                f"{_told({name: tuple(array.shape[1:]) for name, array in coded.items()})}"
            )
        values: torch.Tensor = self.codec.decode(coded)
        return values

    @functools.cached_property
    def _coded(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """What the codec keeps: name → dtype and shape of one key."""
        found: dict[str, tuple[str, tuple[int, ...]]] = self.codec.arrays(self.shape)
        return found

    @functools.cached_property
    def _tails(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tail) for name, (_, tail) in self._coded.items()}


def _told(tails: Mapping[str, tuple[int, ...]]) -> str:
    """``values (10,)``."""
    return ", ".join(f"{name} {tail}" for name, tail in tails.items()) or "nothing"


def _tensor(array: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Over the same memory, where that may be written to: torch has no tensors that may not."""
    if isinstance(array, torch.Tensor):
        return array
    return torch.from_numpy(array if array.flags.writeable else array.copy())
