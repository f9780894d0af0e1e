"""Pixels of keys, batch by batch: from what lies on the device, or made by worker processes.

Both give the same bytes: uint8 (B, H, W, C).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from softcache.training.failures import Shielded, raising
from softcache.views._viewed import ViewedDataset


class PixelSource(Protocol):
    """Where batches of pixels come from."""

    name: str

    def epoch(self, batches: list[np.ndarray], view: int) -> Iterator[tuple[np.ndarray, torch.Tensor, torch.Tensor]]:
        """Per batch: rows (B,) int64, the same on the device, and pixels on the device."""
        ...


class ResidentPixels:
    """All rows lie on the device and a view is made by indexing: no workers, no copies, no waiting."""

    name = "resident"

    def __init__(self, viewed: ViewedDataset, device: torch.device):
        self._viewed = viewed
        self._device = device
        self._base = torch.from_numpy(viewed.base_images()).to(device)

    def epoch(self, batches: list[np.ndarray], view: int) -> Iterator[tuple[np.ndarray, torch.Tensor, torch.Tensor]]:
        if not batches:
            return
        everything = np.concatenate(batches)
        # One copy an epoch: the order and where each key's pixels come from.
        order = torch.from_numpy(everything).to(self._device)
        found = self._viewed.parameters(everything, view)
        motion = {name: torch.from_numpy(values).to(self._device) for name, values in found.items()}
        at = 0
        for rows in batches:
            part = slice(at, at + len(rows))
            base = self._base.index_select(0, order[part])
            yield rows, order[part], self._viewed.move_by(base, {k: v[part] for k, v in motion.items()})
            at += len(rows)


class WorkerPixels:
    """DataLoader workers make pixels, and nothing else; 0 workers make them in this process."""

    def __init__(self, viewed: ViewedDataset, device: torch.device, workers: int, *, start: str | None = None):
        self.name = f"mapped, {workers} workers"
        self._device = device
        self._queue = _Queue()
        self._loader: DataLoader = DataLoader(
            Shielded(_Batches(viewed)),
            batch_size=None,
            sampler=self._queue,
            num_workers=workers,
            persistent_workers=workers > 0,
            prefetch_factor=4 if workers > 0 else None,
            pin_memory=device.type == "cuda",
            multiprocessing_context=(start or "fork") if workers > 0 else None,
        )

    def epoch(self, batches: list[np.ndarray], view: int) -> Iterator[tuple[np.ndarray, torch.Tensor, torch.Tensor]]:
        self._queue.fill([(rows, view) for rows in batches])
        for rows, pixels in zip(batches, raising(self._loader), strict=True):
            on_device = torch.from_numpy(rows).to(self._device)
            yield rows, on_device, pixels.to(self._device, non_blocking=True)


class _Queue(Sampler):
    """The keys of the coming epoch, so that one set of workers serves all epochs."""

    def __init__(self) -> None:
        self._items: list[tuple[np.ndarray, int]] = []

    def fill(self, items: list[tuple[np.ndarray, int]]) -> None:
        self._items = items

    def __iter__(self) -> Iterator[tuple[np.ndarray, int]]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


class _Batches(Dataset):
    def __init__(self, viewed: ViewedDataset):
        self._viewed = viewed

    def __getitem__(self, item: tuple[np.ndarray, int]) -> torch.Tensor:
        rows, view = item
        return self._viewed.batch(rows, view)


def pick_pixels(
    viewed: ViewedDataset,
    device: torch.device,
    *,
    resident: str = "auto",
    workers: int = -1,
    budget: int | None = None,
) -> PixelSource:
    """The fastest source that fits: resident where the recipe only moves bytes and the rows fit ``budget`` bytes."""
    needed = len(viewed.samples) * viewed.size * viewed.size * viewed.samples.channels
    room = budget if budget is not None else memory_budget(device)
    if resident != "off" and viewed.resident and (resident != "auto" or needed <= room):
        return ResidentPixels(viewed, device if resident != "host" else torch.device("cpu"))
    return WorkerPixels(viewed, device, pick_workers(viewed, workers))


def pick_workers(viewed: ViewedDataset, workers: int) -> int:
    """As asked for; by default none where a batch is made by indexing, else one a core that this process may use."""
    if workers >= 0:
        return workers
    if viewed.resident and viewed.samples.images is not None:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores - 1, 16))


def memory_budget(device: torch.device) -> int:
    """A quarter of what is free: of the GPU's memory, or of the host's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 4
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
    except (ValueError, OSError):  # macOS has no such count
        return 2 * 2**30
