"""Arrays of many files as one: shards mapped at equal distances into one reserved range of addresses.

One ``numpy.take`` then serves a whole view, however many shards it has: between two shards lie addresses that nothing
is mapped to, so many that the next shard begins a whole number of rows further, and where a huge page would begin if
its file were one (a map that isn't aligned like this gets small pages, and reads of random rows take 1.6 times as
long). Addresses cost nothing. Linux only; elsewhere each file gets a map of its own. Either way a file is closed as
soon as it is mapped, so the number of shards is not bound by the number of open files.
"""

from __future__ import annotations

import ctypes
import functools
import math
import mmap
import os
import sys
import weakref
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np

from softcache.cache.chunked_rows import ChunkedRows, ChunkMemory
from softcache.cache.extents import PAGE, Compressed, Extent
from softcache.cache.shard import Opened
from softcache.errors import IntegrityError
from softcache.ragged import counts_of, runs_of

HUGE_PAGE = 2**21
MAX_RESERVED = 2**44  # bytes of addresses for one array of one view; a process has 2**47
_PROT_NONE, _PROT_READ = 0x00, 0x01
_MAP_SHARED, _MAP_PRIVATE, _MAP_FIXED, _MAP_ANONYMOUS, _MAP_NORESERVE = 0x01, 0x02, 0x10, 0x20, 0x4000
_FAILED = ctypes.c_void_p(-1).value


class MappedRows(Protocol):
    """Rows of consecutive shards, all but the last of the same number, or of a ragged column of any; read-only."""

    @property
    def lengths(self) -> list[int]:
        """The rows of each shard."""

    def take(self, rows: np.ndarray, out: np.ndarray, part: np.ndarray | None = None) -> None:
        """``out[k] = row rows[k]``; ``rows`` (B,) int64 must be in range. ``part``: the part that each row lies in, for
        who has several arrays of the same rows."""

    def take_runs(self, part: np.ndarray, first: np.ndarray, offset: np.ndarray, out: np.ndarray) -> None:
        """Runs of rows end to end: ``out`` gets, from ``offset[k]`` to before ``offset[k + 1]``, those from
        ``first[k]`` of part ``part[k]`` on. Here parts may have any number of rows."""

    def between(self, part: int, begin: int, end: int) -> np.ndarray:
        """Rows of one shard."""

    def forget(self) -> None:
        """Gives back what was taken beside the maps."""


class Rows:
    """Rows of consecutive shards, all but the last of ``part_rows`` rows; read-only.

    ``parts``: the rows of each shard. Where they lie at equal distances, ``joined`` reaches all of them, at row
    ``part · stride + row in the part``; what lies between must not be touched.
    """

    def __init__(self, parts: list[np.ndarray], joined: np.ndarray | None = None, stride: int = 0):
        self.parts, self._part_rows = parts, len(parts[0])
        self._stride = stride
        self._joined = parts[0] if len(parts) == 1 else joined
        self._gap = stride - self._part_rows if len(parts) > 1 else 0

    def take(self, rows: np.ndarray, out: np.ndarray, part: np.ndarray | None = None) -> None:
        """As ``MappedRows``. No loop over rows."""
        if part is None:
            part = rows // self._part_rows
        if self._joined is not None:
            at = rows + part * self._gap if self._gap else rows
            np.take(self._joined, at, axis=0, out=out, mode="clip")  # the default mode would go through a buffer
            return
        order = np.argsort(part, kind="stable")
        numbers, starts = np.unique(part[order], return_index=True)
        for number, at in zip(numbers.tolist(), np.split(order, starts[1:]), strict=len(rows) > 0):
            out[at] = np.take(self.parts[number], rows[at] - number * self._part_rows, axis=0, mode="clip")

    @property
    def lengths(self) -> list[int]:
        """The rows of each shard."""
        return [len(part) for part in self.parts]

    def between(self, part: int, begin: int, end: int) -> np.ndarray:
        """Rows of one shard, where they lie."""
        return self.parts[part][begin:end]

    def forget(self) -> None:
        """Nothing was taken: the maps go with what looks at them."""

    def take_runs(self, part: np.ndarray, first: np.ndarray, offset: np.ndarray, out: np.ndarray) -> None:
        """As ``MappedRows``. No loop over runs."""
        if self._joined is not None:
            at = runs_of(first + part * self._stride if self._stride else first, offset)
            self._joined.take(at, axis=0, out=out, mode="clip")
            return
        at, numbers = runs_of(first, offset), part.repeat(counts_of(offset))
        for number in np.unique(numbers).tolist():
            places = np.flatnonzero(numbers == number)
            out[places] = np.take(self.parts[number], at[places], axis=0, mode="clip")


def map_shards(
    shards: Sequence[AbstractContextManager[Opened]], *, join: bool = True, most: Mapping[str, int] | None = None
) -> dict[str, Rows]:
    """Maps every array of consecutive shards, at equal distances where that can be. One shard is open at a time. None
    of them is compressed. ``most``: how many rows an array has at most, where the first shard's may not be the longest.

    Errors: ``IntegrityError`` where a file ends early, and those of opening it.
    """
    return _mapped(shards, {}, join, most)[0]


def map_column(
    shards: Sequence[AbstractContextManager[Opened]],
    memory: Mapping[str, ChunkMemory],
    most: Mapping[str, int] | None = None,
) -> dict[str, MappedRows]:
    """As ``map_shards``, where some arrays are compressed: those are mapped as they are, and decompressed into
    ``memory``, by name."""
    plain, chunked = _mapped(shards, memory, True, most)
    return {**plain, **chunked}


def _mapped(
    shards: Sequence[AbstractContextManager[Opened]],
    memory: Mapping[str, ChunkMemory],
    join: bool,
    most: Mapping[str, int] | None,
) -> tuple[dict[str, Rows], dict[str, ChunkedRows]]:
    maps: dict[str, _Map] = {}
    chunked: dict[str, ChunkedRows] = {}
    for number, shard in enumerate(shards):
        with shard as file:
            for name, extent in file.extents.items():
                if name in memory:  # without a number in this shard
                    _add_chunked(chunked, memory, name, file, extent)
                    continue
                if number == 0:
                    rows = (most or {}).get(name, extent.shape[0])
                    maps[name] = _Map(extent, rows, len(shards) if join else 1)
                maps[name].add(file, extent)
            for name, array in file.compressed.items():
                _add_chunked(chunked, memory, name, file, array)
    return {name: made.rows() for name, made in maps.items()}, chunked


def _add_chunked(
    chunked: dict[str, ChunkedRows],
    memory: Mapping[str, ChunkMemory],
    name: str,
    file: Opened,
    array: Extent | Compressed,
) -> None:
    rows = chunked.setdefault(name, ChunkedRows(memory[name], array.dtype, array.shape[1:]))
    if isinstance(array, Extent):
        rows.add(None, array.shape[0], np.empty(0, np.uint8), 0, str(file.path))
        return
    begin = int(array.chunks.offset.min())
    end = int((array.chunks.offset + array.chunks.stored).max())
    mapped = _map_one(file, Extent(begin, np.dtype(np.uint8), (end - begin,), 0))
    rows.add(array, array.shape[0], mapped, begin, str(file.path))


class _Map:
    """One array of consecutive shards, which are added one after the other."""

    def __init__(self, first: Extent, most: int, count: int):
        """``most``: rows that a shard has at most. ``count``: shards that are to lie at equal distances."""
        self._parts: list[np.ndarray] = []
        self._distance = _distance(first, most, count) if count > 1 else 0
        self._base = _reserve(self._distance * count) if self._distance else None
        self._joined: np.ndarray | None = None
        self._stride = 0
        if self._base is None:
            return
        self._skip = first.offset % HUGE_PAGE
        row_bytes = math.prod(first.shape[1:]) * first.dtype.itemsize
        length = self._distance * count
        self._stride, rows = self._distance // row_bytes, (length - self._skip) // row_bytes
        # Made before files are mapped into it, so that the range is given back whatever happens.
        self._joined = _array(self._base, length, self._skip, first.dtype, (rows, *first.shape[1:]))

    def add(self, file: Opened, extent: Extent) -> None:
        if self._base is None or self._joined is None:
            self._parts.append(_map_one(file, extent))
            return
        number = len(self._parts)
        if extent.nbytes:
            address = self._base + number * self._distance + self._skip
            _map_file(file, extent, address, extent.nbytes, extent.offset)
        self._parts.append(self._joined[number * self._stride :][: extent.shape[0]])

    def rows(self) -> Rows:
        return Rows(self._parts, self._joined, self._stride)


def _distance(extent: Extent, rows: int, count: int) -> int:
    """Bytes from one shard's first row to the next one's: whole rows and whole huge pages; 0 where it can't be."""
    row_bytes = math.prod(extent.shape[1:]) * extent.dtype.itemsize
    if sys.platform != "linux" or mmap.PAGESIZE != PAGE or not row_bytes or extent.offset % PAGE:
        return 0
    unit = math.lcm(HUGE_PAGE, row_bytes)
    distance = -(-(rows * row_bytes + extent.offset % HUGE_PAGE) // unit) * unit
    return distance if distance * count <= MAX_RESERVED else 0


def _reserve(length: int) -> int | None:
    """Addresses that begin where a huge page could; ``None`` where the system has none to give (``ulimit -v``)."""
    base = _libc().mmap(None, length + HUGE_PAGE, _PROT_NONE, _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE, -1, 0)
    if base == _FAILED:
        return None
    aligned = -(-base // HUGE_PAGE) * HUGE_PAGE
    if aligned > base:
        _libc().munmap(base, aligned - base)
    if base + HUGE_PAGE > aligned:
        _libc().munmap(aligned + length, base + HUGE_PAGE - aligned)
    return int(aligned)


def _map_one(file: Opened, extent: Extent) -> np.ndarray:
    if extent.nbytes == 0:
        return np.empty(extent.shape, extent.dtype)
    start = extent.offset - extent.offset % mmap.ALLOCATIONGRANULARITY
    length = extent.offset + extent.nbytes - start
    base = _map_file(file, extent, None, length, start)
    return _array(base, length, extent.offset - start, extent.dtype, extent.shape)


def _map_file(file: Opened, extent: Extent, address: int | None, length: int, offset: int) -> int:
    """Maps a part of an open file, at ``address`` if that is given.

    Errors: ``IntegrityError`` where the file ends before the extent does: reading beyond the end of a map would kill
    the process.
    """
    if os.fstat(file.fd).st_size < extent.offset + extent.nbytes:
        raise IntegrityError(f"{file.path} has been truncated")
    flags = _MAP_SHARED | (_MAP_FIXED if address is not None else 0)
    found = _libc().mmap(address, length, _PROT_READ, flags, file.fd, offset)
    if found == _FAILED:
        raise IntegrityError(f"{file.path} can't be mapped: {os.strerror(ctypes.get_errno())}")
    return int(found)


def _array(base: int, length: int, skip: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """A read-only array over mapped memory, which is unmapped when nothing looks at it any more."""
    buffer = (ctypes.c_ubyte * length).from_address(base)
    # At the interpreter's end the system takes the memory back, and arrays may still be looked at.
    weakref.finalize(buffer, _libc().munmap, base, length).atexit = False
    array = np.frombuffer(memoryview(buffer), dtype, math.prod(shape), skip).reshape(shape)
    array.flags.writeable = False
    return array


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64,
    )  # fmt: skip
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    return libc
