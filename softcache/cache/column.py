"""A column: what a cache keeps of one signal of the teacher for each key, and how it lies on disk."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from softcache.cache.chunk_frames import Chunking
from softcache.cache.compression import recorded_chunking
from softcache.cache.extents import Arrays
from softcache.cache.schema import ColumnRecord, share_of
from softcache.cache.shares import places_in
from softcache.errors import UsageError
from softcache.losses._target import Target
from softcache.ragged import Int64, places_of

DIGEST = "digest"  # of a key's inputs: an array of every column, beside those of its codec
OFFSET = "offset"  # of a ragged column: where the places of each row begin, and at last where those of all end


@dataclass(frozen=True)
class Column:
    """``name``: of an output of the teacher, such as ``logits``, or ``hint.LAYER``. ``kind``: what its last axis is:
    ``classes``, ``binary`` or ``values``. ``shape``: of one key's values; of a ragged column, in which rows have
    different numbers of places, of one place's. ``codec``: how they are kept. ``shard_rows``: rows a shard.
    ``lengths``: of a ragged column, the input whose lengths it goes by: a row that is n long there has ceil(n /
    ``stride``) places. ``share``: of one that is kept for a share of the rows, which one: these rows have one place,
    the others none. ``constants``: reads those that the codec was fitted to, if it has any and was. ``compress``: how
    what the codec keeps is compressed, as the manifest records it; None where it lies there as it is."""

    name: str
    kind: str
    shape: tuple[int, ...]
    codec: Any
    shard_rows: int
    lengths: str | None = None
    stride: int = 1
    constants: Callable[[], dict[str, torch.Tensor]] | None = None
    compress: str | None = None
    share: float | None = None

    @classmethod
    def of(cls, name: str, record: ColumnRecord, codec: Any) -> Column:
        """``codec``: as ``open_codec`` gives the one that the record names."""
        found = cls(name, record.kind, record.tail, codec, record.shard_rows, record.lengths, record.stride)
        return dataclasses.replace(found, compress=record.compress, share=share_of(name))

    @functools.cached_property
    def chunking(self) -> Mapping[str, Chunking]:
        """Of the arrays that are compressed, how.

        Errors: ``UsageError`` for a compression that a column of these arrays can't have.
        """
        return recorded_chunking(self.compress, self.row)

    @property
    def row(self) -> Arrays:
        """What its codec keeps of one row, or of one place of a ragged column."""
        return {name: (dtype, (1, *tail)) for name, (dtype, tail) in self._coded.items()}

    @property
    def has_constants(self) -> bool:
        """Whether the codec is fitted to values before it is used."""
        return hasattr(self.codec, "constants")

    @functools.cached_property
    def constant_arrays(self) -> Arrays:
        """Name → dtype and shape of what it is fitted to."""
        found: Arrays = self.codec.constants(self.shape)
        return found

    def fit(self, values: torch.Tensor) -> dict[str, np.ndarray]:
        """The codec's constants for values (K, …) float32 on the CPU, as they are kept."""
        made: dict[str, torch.Tensor] = self.codec.fit(values)
        return {
            name: made[name].numpy().astype(np.dtype(dtype).newbyteorder("<"))
            for name, (dtype, _) in self.constant_arrays.items()
        }

    @functools.cached_property
    def coder(self) -> Any:
        """What encodes and decodes: the codec, with its constants if it has any, which are read once.

        Errors: ``IntegrityError`` where their file is missing or damaged.
        """
        assert (self.constants is not None) == self.has_constants, self.name
        if self.constants is not None:
            return self.codec.fitted(self.constants())
        return self.codec.shaped(self.shape) if hasattr(self.codec, "shaped") else self.codec

    @property
    def keeps_leaders(self) -> bool:
        """Whether its codec keeps the largest logits and what all others weigh together, and not each number."""
        return hasattr(self.coder, "target")

    @property
    def ragged(self) -> bool:
        """Whether rows have different numbers of places."""
        return self.lengths is not None or self.share is not None

    def places(self, rows: int, lengths: Mapping[str, Int64]) -> Int64:
        """(N,) how many places each of a dataset's N ``rows`` has in a ragged column. ``lengths``: (N,) of each input
        whose rows have lengths of their own."""
        if self.share is not None:
            return places_in(self.share, rows)
        assert self.lengths is not None, self.name
        return places_of(lengths[self.lengths], self.stride)

    @property
    def width(self) -> int:
        """How many classes, labels or numbers its last axis has."""
        return self.shape[-1] if self.shape else 1

    def arrays(self, rows: int, places: int = 0) -> Arrays:
        """What a shard of so many rows holds: dataset name → dtype and shape. ``digest`` is that of the pixels.
        ``places``: of a ragged column, those of all rows together."""
        held: Arrays = {DIGEST: ("<u4", (rows,))}
        if self.ragged:
            held[OFFSET] = ("<i8", (rows + 1,))
        count = places if self.ragged else rows
        return held | {name: (dtype, (count, *tail)) for name, (dtype, tail) in self._coded.items()}

    def nbytes(self, rows: int, places: int = 0) -> int:
        """Bytes of all arrays of a shard."""
        return sum(math.prod(shape) * np.dtype(dtype).itemsize for dtype, shape in self.arrays(rows, places).values())

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, its digest included; of a ragged column without its places."""
        return self.nbytes(1)

    @property
    def place_bytes(self) -> int:
        """Bytes of one place of a ragged column."""
        return self.nbytes(1, 1) - self.nbytes(1)

    def encode(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Values (B, …) on any device → arrays with one row a key, by the names that they have in a shard. Of a ragged
        column both have one row a place."""
        coded: dict[str, torch.Tensor] = self.coder.encode(values)
        return coded

    def decode(self, arrays: Mapping[str, np.ndarray | torch.Tensor]) -> torch.Tensor:
        """The other way: values (B, …) float32, of a ragged column (P, …) of all places, on the same device. Digests
        and offsets are not looked at. Where ``keeps_leaders``, these are logits for T = 1.

        Errors: ``UsageError`` where the arrays are not those of this column.
        """
        values: torch.Tensor = self.coder.decode(self._own_arrays(arrays))
        return values

    def bound(self, values: torch.Tensor) -> torch.Tensor:
        """(B, …): what each of values (B, …) may lose by a codec whose levels depend on all values of a row; 0 of other
        codecs."""
        if not hasattr(self.coder, "bound"):
            return torch.zeros_like(values)
        found: torch.Tensor = self.coder.bound(values)
        return found

    def target(self, arrays: Mapping[str, np.ndarray | torch.Tensor]) -> Target:
        """What a loss is given: as ``decode`` or, where ``keeps_leaders``, what gives logits for any T.

        Errors: as ``decode``.
        """
        found: Target = (self.coder.target if self.keeps_leaders else self.coder.decode)(self._own_arrays(arrays))
        return found

    def _own_arrays(self, arrays: Mapping[str, np.ndarray | torch.Tensor]) -> dict[str, torch.Tensor]:
        coded = {name: _tensor(array) for name, array in arrays.items() if name not in (DIGEST, OFFSET)}
        if {name: tuple(array.shape[1:]) for name, array in coded.items()} != self._tails:
            raise UsageError(
                f"the column {self.name!r} has {_told(self._tails)} of each key, not "
                f"{_told({name: tuple(array.shape[1:]) for name, array in coded.items()})}"
            )
        return coded

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
