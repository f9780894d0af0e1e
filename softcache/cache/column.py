"""A column: what a cache keeps of one signal of the teacher for each key, and how it lies on disk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from softcache.cache.schema import LOGITS, HintColumn, hint_column
from softcache.cache.shard import Arrays
from softcache.codecs._open import open_codec
from softcache.errors import UsageError

HINT_CODECS = {"float16": "fp16", "float32": "fp32"}


@dataclass(frozen=True)
class Column:
    """``name``: ``logits``, or ``hint.LAYER``. ``shape``: of one key's values. ``codec``: how they are kept.
    ``shard_rows``: rows a shard. ``group``: what the names of its arrays begin with in a shard."""

    name: str
    shape: tuple[int, ...]
    codec: Any
    shard_rows: int
    group: str

    def arrays(self, rows: int) -> Arrays:
        """What a shard of so many rows holds: dataset name → dtype and shape. ``digest`` is that of the pixels."""
        coded = self.codec.arrays(self.shape)
        held: Arrays = {f"{self.group}/{name}": (dtype, (rows, *tail)) for name, (dtype, tail) in coded.items()}
        return {"digest": ("<u4", (rows,)), **held}

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, its digest included."""
        return sum(math.prod(shape) * np.dtype(dtype).itemsize for dtype, shape in self.arrays(1).values())

    def encode(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Values (B, …) on any device → arrays with one row a key, by the names that they have in a shard."""
        return {f"{self.group}/{name}": array for name, array in self.codec.encode(values).items()}

    def decode(self, arrays: Mapping[str, np.ndarray | torch.Tensor]) -> torch.Tensor:
        """The other way: values (B, …) float32, on the same device. Arrays of other columns and digests are not looked
        at. Errors: ``UsageError`` where none is of this column."""
        start = f"{self.group}/"
        coded = {name.removeprefix(start): _tensor(array) for name, array in arrays.items() if name.startswith(start)}
        if not coded:
            raise UsageError(f"nothing of the column {self.name!r} is among {', '.join(arrays) or 'no arrays'}")
        values: torch.Tensor = self.codec.decode(coded)
        return values


def logits_column(classes: int, codec: Any, shard_rows: int) -> Column:
    """``codec``: as ``open_codec`` gives it."""
    return Column(LOGITS, (classes,), codec, shard_rows, "logits")


def column_of_hint(layer: str, hint: HintColumn) -> Column:
    codec = open_codec(HINT_CODECS[hint.dtype])
    return Column(hint_column(layer), tuple(hint.shape), codec, hint.shard_rows, "hint")


def _tensor(array: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Over the same memory, where that may be written to: torch has no tensors that may not."""
    if isinstance(array, torch.Tensor):
        return array
    return torch.from_numpy(array if array.flags.writeable else array.copy())
