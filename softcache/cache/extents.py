"""Where the arrays of a file lie, compared with what they must be. A file is not trusted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from softcache.cache.chunk_frames import Chunking, decode, most_stored
from softcache.cache.chunk_index import Chunks
from softcache.cache.hdf5 import Node
from softcache.cache.schema import MAX_SHARD_BYTES
from softcache.errors import IntegrityError

PAGE = 4096
Arrays = dict[str, tuple[str, tuple[int, ...]]]  # name → dtype and full shape


@dataclass(frozen=True)
class Extent:
    """Where an array lies in its file: ``offset`` in bytes, ``shape`` with rows first."""

    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]
    crc32: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Compressed:
    """An array in chunks that are compressed each: ``chunks`` says where they lie, each of ``chunks.rows`` rows.
    ``crc32``: of the array's bytes, ``stored_crc32``: of those of all chunks as they lie in the file."""

    chunks: Chunks
    dtype: np.dtype
    shape: tuple[int, ...]
    crc32: int
    stored_crc32: int

    def decode(self, frame: Any, out: np.ndarray) -> None:
        """A chunk's numbers, its first ones where ``out`` has fewer rows. Errors: ``IntegrityError`` without the file's
        name."""
        rows = self.chunks.rows
        whole = out if len(out) == rows else np.empty((rows, *self.shape[1:]), self.dtype)
        decode(frame, whole, self.chunks.shuffled)
        if whole is not out:
            out[:] = whole[: len(out)]


def compressed_arrays(arrays: Arrays, chunking: Mapping[str, Chunking] | None) -> dict[str, Chunking]:
    """Of the arrays that are compressed, how: only those that have numbers."""
    return {name: how for name, how in (chunking or {}).items() if math.prod(arrays[name][1])}


def extent_of(node: Node, name: str, dtype: str, shape: tuple[int, ...], path: Path) -> Extent:
    """Where an array lies that isn't compressed. Errors: ``IntegrityError`` naming ``path``."""
    wanted = _check_array(node, name, dtype, shape, path)
    if node.place is None:
        raise IntegrityError(f"{path} has an array {name} that is chunked stored, not contiguous")
    (crc,) = _checksums(node, name, ["crc32"], path)
    extent = Extent(node.place[0], wanted, tuple(shape), crc)
    if node.place[1] != extent.nbytes or extent.offset % PAGE:
        raise IntegrityError(f"{path}: {name} has another number of bytes than its shape, or lies off a page's start")
    if not extent.nbytes and crc:
        raise IntegrityError(f"{path}: {name} has no numbers and the checksum of some")
    return extent


def compressed_of(node: Node, name: str, dtype: str, shape: tuple[int, ...], how: Chunking, path: Path) -> Compressed:
    """Where an array lies that is compressed. Errors: ``IntegrityError`` naming ``path``."""
    wanted = _check_array(node, name, dtype, shape, path)
    if math.prod(shape) * wanted.itemsize > MAX_SHARD_BYTES:  # a small file could keep a reader busy for days
        raise IntegrityError(f"{path}: {name} has more than {MAX_SHARD_BYTES >> 20} MiB, which compressed arrays don't")
    chunks, rows = node.chunks, min(how.rows, shape[0])
    if chunks is None:
        raise IntegrityError(f"{path}: {name} is not compressed, as all of its column is")
    if (chunks.rows, chunks.shuffled) != (rows, how.shuffle):
        raise IntegrityError(f"{path}: {name} has chunks of {chunks.rows} rows, or is shuffled otherwise than recorded")
    most = most_stored(rows * math.prod(shape[1:]) * wanted.itemsize)
    if int(chunks.stored.max()) > most:
        raise IntegrityError(f"{path}: {name} has a chunk of more than {most} bytes, for numbers that are fewer")
    return Compressed(chunks, wanted, tuple(shape), *_checksums(node, name, ["crc32", "stored_crc32"], path))


def _check_array(node: Node, name: str, dtype: str, shape: tuple[int, ...], path: Path) -> np.dtype:
    wanted = np.dtype(dtype).newbyteorder("<")
    if node.dtype is None or node.shape is None:
        raise IntegrityError(f"{path}: {name} is no array")
    if node.dtype != wanted or node.shape != tuple(shape):
        raise IntegrityError(f"{path}: {name} is {node.dtype} {node.shape}, expected {wanted} {tuple(shape)}")
    return wanted


def _checksums(node: Node, name: str, wanted: list[str], path: Path) -> list[int]:
    found = [node.attributes.get(attribute) for attribute in wanted]
    if set(node.attributes) != set(wanted) or not all(isinstance(crc, int) for crc in found):
        raise IntegrityError(f"{path}: {name} has no checksum, or other attributes than that")
    return [crc for crc in found if isinstance(crc, int)]


def check_places(places: list[tuple[int, int]], size: int, path: Path) -> None:
    """Errors: ``IntegrityError`` where two parts of a file (offset, bytes) overlap, or one lies outside."""
    end = 0
    for offset, nbytes in sorted(places):
        if offset < end or offset + nbytes > size:
            raise IntegrityError(f"{path} has an array that lies outside of it or over something else")
        end = offset + nbytes
