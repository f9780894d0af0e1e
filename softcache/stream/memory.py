"""How much memory there is to spare: what the machine has free, and what this process may have of it."""

from __future__ import annotations

import os
from pathlib import Path

import torch

_UNKNOWN = 2 * 2**30  # where a system doesn't say


def memory_budget(device: torch.device) -> int:
    """Bytes that may be held for a training: a quarter of what is available on the device."""
    return available_memory(device) // 4


def available_memory(device: torch.device | None = None) -> int:
    """Bytes that could be taken now: of a GPU's memory, else of the host's, within the limits of this process's
    control group (a container's)."""
    if device is not None and device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # what torch has reserved and doesn't use is as good as free
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(_host(), _group())


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
    """What a control group (version 2) leaves, or as good as no bound."""
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
