"""Inputs of keys, batch by batch: made by indexing what is in memory, or by worker processes.

Both give the same bytes: pixels (B, H, W, C), or whatever else the dataset has.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from softcache.console import counted
from softcache.distributed import local_world
from softcache.errors import UsageError
from softcache.fields import Fields, Inputs, joined_inputs
from softcache.inputs import PIXELS
from softcache.stream.memory import memory_budget
from softcache.stream.parts import Parts, key_rows
from softcache.stream.transfer import PinnedBuffers, host_tensor
from softcache.stream.workers import (
    SharedViews,
    Shielded,
    follow_parent,
    for_workers,
    pick_start_method,
    started,
)
from softcache.views._open import Viewed, view_samples
from softcache.views._viewed import ViewedDataset

Keys = Iterator[tuple[Parts, torch.Tensor, Inputs]]


class InputSource(Protocol):
    """Where batches of inputs come from."""

    name: str

    def epoch(self, batches: Sequence[Parts]) -> Keys:
        """Each batch with its keys' rows (B,) int64 on the device and their inputs on the device."""
        ...


class ResidentInputs:
    """Holds all rows' evaluation pixels, or other inputs of a fixed shape, on the device, or on the host, and makes
    views of them by indexing.

    This takes no workers and, on the device, no copies within an epoch.
    """

    def __init__(self, viewed: Viewed, device: torch.device, *, host: bool = False):
        self.on_device = not host or device.type == "cpu"
        self.name = f"resident on {device if self.on_device else 'the host'}"
        self._viewed = viewed
        self._device = device
        self._place = device if self.on_device else torch.device("cpu")
        base = host_tensor(viewed.base_images()) if isinstance(viewed, ViewedDataset) else viewed.base()
        self._base: Inputs = base.to(self._place)
        self._dtype = getattr(torch, viewed.samples.dtype)  # of pixels, which the base has the bits of
        self._pinned = None if self.on_device else PinnedBuffers(device, pinned=device.type == "cuda")

    def clean(self) -> ResidentInputs:
        """The evaluation inputs of the same rows, made from the same memory."""
        return self.seen_in(view_samples(self._viewed.samples, "none", size=self._viewed.size))

    def seen_in(self, viewed: Viewed) -> ResidentInputs:
        """The same rows in the views of another recipe that can be made by indexing, from the same memory."""
        shared = copy.copy(self)
        shared._viewed = viewed
        return shared

    def epoch(self, batches: Sequence[Parts]) -> Keys:
        if not batches:
            return
        everything = np.concatenate([key_rows(parts) for parts in batches])
        # The whole epoch's order and offsets are copied to the device at once.
        order = torch.from_numpy(everything).to(self._device)
        motion = {name: torch.from_numpy(of).to(self._place) for name, of in self._motion(everything, batches).items()}
        here = order if self.on_device else torch.from_numpy(everything)
        at = 0
        for parts in batches:
            keys = slice(at, at + sum(map(len, parts)))
            made: Inputs
            if isinstance(self._viewed, ViewedDataset) and isinstance(self._base, torch.Tensor):
                base = self._base.index_select(0, here[keys]).view(self._dtype)
                made = self._viewed.move_by(base, {name: of[keys] for name, of in motion.items()})
            else:
                made = self._base[here[keys]]
            yield parts, order[keys], self._sent(made)
            at = keys.stop

    def _motion(self, rows: np.ndarray, batches: Sequence[Parts]) -> dict[str, np.ndarray]:
        """The parameters of all keys of an epoch, whose ``rows`` (K,) are given, in their order."""
        if not isinstance(self._viewed, ViewedDataset):
            return {}
        views = {view for parts in batches for part in parts for view in part.views}
        if len(views) == 1:
            return dict(self._viewed.parameters(rows, views.pop()))
        of_key = np.concatenate([part.key_views for parts in batches for part in parts])
        motion: dict[str, np.ndarray] = {}
        for view in sorted(views):
            keys = np.flatnonzero(of_key == view)
            for name, values in self._viewed.parameters(rows[keys], view).items():
                motion.setdefault(name, np.empty(len(rows), values.dtype))[keys] = values
        return motion

    def _sent(self, inputs: Inputs) -> Inputs:
        if self._pinned is None:
            return inputs
        tensors = inputs.tensors if isinstance(inputs, Fields) else {PIXELS: inputs}
        wanted = {name: (tensor.numpy().dtype.str, tuple(tensor.shape)) for name, tensor in tensors.items()}
        buffers = self._pinned.arrays(wanted)
        for name, tensor in tensors.items():
            torch.from_numpy(buffers[name]).copy_(tensor)
        sent = self._pinned.send(buffers)
        return Fields(sent) if isinstance(inputs, Fields) else sent[PIXELS].view(inputs.dtype)


class WorkerInputs:
    """Has DataLoader workers make the inputs; with 0 workers this process makes them."""

    def __init__(self, viewed: Viewed, device: torch.device, workers: int, *, start: str = "auto"):
        self.name = f"mapped, {counted(workers, 'worker')}"
        self._device = device
        self._queue = _Queue()
        method = pick_start_method(start)
        self._loader: DataLoader = DataLoader(
            Shielded(_Batches(for_workers(viewed, method) if workers > 0 else viewed)),
            batch_size=None,
            sampler=self._queue,
            num_workers=workers,
            persistent_workers=workers > 0,
            prefetch_factor=4 if workers > 0 else None,
            pin_memory=device.type == "cuda",
            multiprocessing_context=method if workers > 0 else None,
            worker_init_fn=follow_parent,
            # Of its own, so that an epoch's inputs draw nothing from the generator that dropout draws from.
            generator=torch.Generator(),
        )

    def epoch(self, batches: Sequence[Parts]) -> Keys:
        self._queue.fill(batches)
        for parts, inputs in zip(batches, started(self._loader), strict=True):
            yield parts, host_tensor(key_rows(parts)).to(self._device), inputs.to(self._device, non_blocking=True)


class _Queue(Sampler):
    """The batches of the coming epoch, so that one set of workers serves all epochs."""

    def __init__(self) -> None:
        self._batches: Sequence[Parts] = ()

    def fill(self, batches: Sequence[Parts]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Parts]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)


class _Batches(Dataset):
    def __init__(self, viewed: Viewed | SharedViews):
        self._source = viewed

    def __getitem__(self, parts: Parts) -> Inputs:
        viewed = self._source.viewed if isinstance(self._source, SharedViews) else self._source
        made: list[Inputs] = []
        for part in parts:
            made += viewed.batch_views(part.rows, part.views)
        return joined_inputs(made)


def pick_inputs(
    viewed: Viewed,
    device: torch.device,
    *,
    resident: str = "auto",
    workers: int = -1,
    budget: int | None = None,
    start: str = "auto",
) -> InputSource:
    """The fastest source that fits: resident where the recipe only moves bytes and the rows fit ``budget`` bytes.

    Errors: ``UsageError`` where ``resident`` is ``device`` or ``host`` and views can't be made by indexing.
    """
    if resident in ("device", "host") and not viewed.resident:
        raise UsageError(
            f"--resident {resident}: views of {viewed.recipe} of {viewed.samples.spec} can't be made by indexing (only "
            "none, flip and crop of images that are in memory can, and other inputs of a fixed shape as they are): "
            "leave out --resident, workers then make them"
        )
    if resident == "auto" and viewed.resident:
        room = budget if budget is not None else memory_budget(device)
        resident = "device" if viewed.bytes <= room else "off"
    if resident in ("device", "host"):
        return ResidentInputs(viewed, device, host=resident == "host")
    return WorkerInputs(viewed, device, pick_workers(viewed, workers), start=start)


def pick_workers(viewed: Viewed, workers: int) -> int:
    """``workers``, or where that is negative 0 if views are made by indexing or are no pictures, else one less than
    this process's cores (at least 1, at most 16), or its share of them under torchrun."""
    if workers >= 0:
        return workers
    if viewed.samples.in_memory and (viewed.resident or not viewed.samples.pictures):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores // local_world() - 1, 16))
