"""Arrays of many files as one: shards mapped back to back into one reserved range of addresses.

One ``numpy.take`` then serves a whole view, however many shards it has. Linux only (``MAP_FIXED``); elsewhere, or
where a shard's bytes don't end on a page, each file gets a map of its own.
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


def _map_one(path: Path, extent: Extent) -> np.ndarray:
    if extent.nbytes == 0:
        return np.empty(extent.shape, extent.dtype)
    start = extent.offset - extent.offset % mmap.ALLOCATIONGRANULARITY
    with open(path, "rb") as file:
        try:
            mapped = mmap.mmap(
                file.fileno(), extent.offset + extent.nbytes - start, offset=start, access=mmap.ACCESS_READ
            )
        except (OSError, ValueError) as error:
            raise IntegrityError(f"{path} can't be mapped: {error}") from None
    return np.frombuffer(mapped, extent.dtype, math.prod(extent.shape), extent.offset - start).reshape(extent.shape)


def _map_joined(parts: Sequence[tuple[Path, Extent]]) -> np.ndarray:
    libc = _libc()
    total = sum(extent.nbytes for _, extent in parts)
    reserved = -(-total // PAGE) * PAGE
    base = libc.mmap(None, reserved, mmap.PROT_NONE if hasattr(mmap, "PROT_NONE") else 0,
                     _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE, -1, 0)  # fmt: skip
    if base == _FAILED:
        raise MemoryError(f"no {reserved} bytes of address space for {parts[0][0].parent}")
    buffer = (ctypes.c_ubyte * total).from_address(base)
    # The address range lives as long as the buffer that numpy holds on to.
    weakref.finalize(buffer, libc.munmap, base, reserved)
    at = base
    for path, extent in parts:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size < extent.offset + extent.nbytes:
                raise IntegrityError(f"{path} has been truncated")
            flags = _MAP_SHARED | _MAP_FIXED
            if libc.mmap(at, extent.nbytes, mmap.PROT_READ, flags, file.fileno(), extent.offset) == _FAILED:
                raise IntegrityError(f"{path} can't be mapped: {os.strerror(ctypes.get_errno())}")
        at += extent.nbytes
    rows = sum(extent.shape[0] for _, extent in parts)
    joined = np.frombuffer(memoryview(buffer), parts[0][1].dtype).reshape(rows, *parts[0][1].shape[1:])
    joined.flags.writeable = False
    return joined


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64,
    )  # fmt: skip
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    return libc
