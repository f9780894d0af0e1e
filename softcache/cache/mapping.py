"""Arrays of many files as one: shards mapped back to back into one reserved range of addresses.

One ``numpy.take`` then serves a whole view, however many shards it has. Linux only; elsewhere, or where a shard's
bytes don't end on a page, each file gets a map of its own. Either way a file is closed as soon as it is mapped, so
the number of shards is not bound by the number of open files (``mmap.mmap`` keeps a descriptor for each).
"""

from __future__ import annotations

import ctypes
import functools
import math
import mmap
import os
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from softcache.cache.shard import PAGE, Extent
from softcache.errors import IntegrityError

_PROT_NONE, _PROT_READ = 0x00, 0x01
_MAP_SHARED, _MAP_PRIVATE, _MAP_FIXED, _MAP_ANONYMOUS, _MAP_NORESERVE = 0x01, 0x02, 0x10, 0x20, 0x4000
_FAILED = ctypes.c_void_p(-1).value


def map_rows(parts: Sequence[tuple[Path, Extent]]) -> list[np.ndarray]:
    """Read-only arrays over the rows of consecutive shards: one array where they lie back to back, else one each.

    All parts but the last have the same number of rows.
    """
    if len(parts) > 1 and can_join(parts):
        return [_map_joined(parts)]
    return [_map_one(path, extent) for path, extent in parts]


def can_join(parts: Sequence[tuple[Path, Extent]]) -> bool:
    """Whether the shards can lie back to back in memory: whole pages, page-aligned, and a system that lets us."""
    whole = all(extent.nbytes % PAGE == 0 for _, extent in parts[:-1])
    aligned = all(extent.offset % PAGE == 0 for _, extent in parts)
    return sys.platform == "linux" and mmap.PAGESIZE == PAGE and whole and aligned


def take_rows(parts: Sequence[np.ndarray], part_rows: int, rows: np.ndarray, out: np.ndarray) -> None:
    """``out[k] = row rows[k]`` of arrays that follow each other, all but the last of ``part_rows`` rows.

    One ``take`` an array, whatever the number of rows; ``rows`` (B,) int64 must be in range.
    """
    if len(parts) == 1:
        np.take(parts[0], rows, axis=0, out=out, mode="clip")  # the default mode would go through a buffer
        return
    part = rows // part_rows
    order = np.argsort(part, kind="stable")
    numbers, starts = np.unique(part[order], return_index=True)
    for number, at in zip(numbers.tolist(), np.split(order, starts[1:]), strict=len(rows) > 0):
        out[at] = np.take(parts[number], rows[at] - number * part_rows, axis=0, mode="clip")


def _map_one(path: Path, extent: Extent) -> np.ndarray:
    if extent.nbytes == 0:
        return np.empty(extent.shape, extent.dtype)
    start = extent.offset - extent.offset % mmap.ALLOCATIONGRANULARITY
    length = extent.offset + extent.nbytes - start
    base = _map_file(path, extent, None, length, start)
    return _array(base, length, extent.offset - start, extent.dtype, extent.shape)


def _map_joined(parts: Sequence[tuple[Path, Extent]]) -> np.ndarray:
    total = sum(extent.nbytes for _, extent in parts)
    reserved = -(-total // PAGE) * PAGE
    base = _libc().mmap(None, reserved, _PROT_NONE, _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE, -1, 0)
    if base == _FAILED:
        raise MemoryError(f"no {reserved} bytes of address space for {parts[0][0].parent}")
    rows = sum(extent.shape[0] for _, extent in parts)
    # Made before the files are mapped over it, so that the range is given back whatever happens.
    joined = _array(base, reserved, 0, parts[0][1].dtype, (rows, *parts[0][1].shape[1:]))
    at = base
    for path, extent in parts:
        if extent.nbytes:
            _map_file(path, extent, at, extent.nbytes, extent.offset)
        at += extent.nbytes
    return joined


def _map_file(path: Path, extent: Extent, address: int | None, length: int, offset: int) -> int:
    """Maps a part of a file, at ``address`` if that is given, and closes it.

    Errors: ``IntegrityError`` where the file is missing or ends before the extent does: reading beyond the end of a
    map would kill the process.
    """
    flags = _MAP_SHARED | (_MAP_FIXED if address is not None else 0)
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size < extent.offset + extent.nbytes:
                raise IntegrityError(f"{path} has been truncated")
            found = _libc().mmap(address, length, _PROT_READ, flags, file.fileno(), offset)
            if found == _FAILED:
                raise IntegrityError(f"{path} can't be mapped: {os.strerror(ctypes.get_errno())}")
    except OSError as error:
        raise IntegrityError(f"{path} can't be mapped: {error.strerror or error}") from None
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
