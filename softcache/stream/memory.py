"""How much memory this process may still take, on the host and on a device, and how much of it a column takes."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from softcache.cache.reader import Cache
from softcache.distributed import local_world

_UNKNOWN = 2 * 2**30  # assumed where a system has neither /proc/meminfo nor sysconf


def memory_budget(device: torch.device) -> int:
    """Bytes that a training may keep for speed: a quarter of what is available on the device; of the host's memory,
    of which each process that torchrun has started here has a share."""
    return available_memory(device) // 4 // (1 if device.type == "cuda" else local_world())


def available_memory(device: torch.device | None = None) -> int:
    """Bytes of a GPU's memory that are free, or of the host's within the limit of this process's control group
    (that of a container)."""
    if device is not None and device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # torch reserves memory that it doesn't use; it can use that too
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(_host(), _group())


def view_bytes(cache: Cache, column: str) -> int:
    """Bytes of a column in one view."""
    layout = cache.layout(column)
    return layout.nbytes(cache.rows, int(cache.places(column).sum()) if layout.ragged else 0)


def _host() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):  # unlike MemFree it counts the page cache, which gives way
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (ValueError, OSError):
        return _UNKNOWN


def _group() -> int:
    """Bytes that the control groups (version 2) of this process leave; 2**62 where none sets a limit."""
    root = Path("/sys/fs/cgroup")
    try:
        own = next(line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return 2**62
    left = 2**62
    folder = root / own.lstrip("/")
    while True:
        try:
            limit = (folder / "memory.max").read_text().strip()
            if limit != "max":
                # the page cache counts as used, and gives way
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                used = int((folder / "memory.current").read_text())
                left = min(left, max(int(limit) - used + int(stat.get("file", "0")), 0))
        except (OSError, ValueError):
            pass
        if folder == root or root not in folder.parents:
            return left
        folder = folder.parent
