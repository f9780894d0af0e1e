"""Batches of keys with everything the loss wants: pixels, labels, and what the teacher says, checked key by key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from softcache.cache.agreement.digests import CloseRows, PixelCheck
from softcache.cache.reader import Cache
from softcache.stream.inputs import PixelSource
from softcache.stream.plan import Plan
from softcache.stream.targets import Targets
from softcache.views._viewed import ViewedDataset


class TargetSource(Protocol):
    """What the teacher says of keys, wherever it comes from."""

    name: str

    @property
    def compared(self) -> Sequence[Cache]:
        """Whose digests ``targets`` gives, one after the other; none where pixels are any."""
        ...

    @property
    def seconds(self) -> float:
        """Seconds that were spent on asking it."""
        ...

    def begin(self, views: Sequence[int], batches: Sequence[np.ndarray]) -> None:
        """Makes ready for an epoch on these views, and batches of the images in these rows."""
        ...

    def targets(self, rows: np.ndarray, on_device: torch.Tensor, pixels: torch.Tensor) -> Targets:
        """``rows`` (B,) int64, the same on the device; ``pixels`` (B, H, W, C) uint8."""
        ...


@dataclass
class Batch:
    """``pixels`` (B, H, W, C) uint8; ``visible`` (B,) int64: the rows' labels, -1 where there is none that may be used;
    ``mixed``: the partners' visible labels and the own label's weight, both (B,); ``labels`` (B,) int64: the one label
    of each sample for losses that take one, of a mixed sample that of the larger share. No label that may not be used
    is in a batch."""

    rows: torch.Tensor
    pixels: torch.Tensor
    labels: torch.Tensor
    visible: torch.Tensor
    mixed: tuple[torch.Tensor, torch.Tensor] | None
    targets: Targets


class Stream:
    """The epochs of a training, as batches on the device."""

    def __init__(
        self,
        viewed: ViewedDataset,
        pixels: PixelSource,
        plan: Plan,
        device: torch.device,
        *,
        visible: np.ndarray,
        teacher: TargetSource | None,
        close: Mapping[Path, CloseRows] | None = None,
    ):
        """``close``: by a cache's folder, whose pixels may differ from what its teacher saw; None where none may."""
        self.plan = plan
        self.name = pixels.name
        self.targets = teacher.name if teacher is not None else "from labels"
        self._viewed = viewed
        self._pixels = pixels
        self.device = device
        self._teacher = teacher
        self._close = close
        self._visible = torch.from_numpy(visible.astype(np.int64)).to(device)
        self._at_once = device.type == "cpu"

    @property
    def teacher_seconds(self) -> float:
        """Seconds that the teacher itself has taken so far in this process."""
        return self._teacher.seconds if self._teacher is not None else 0.0

    def release(self) -> None:
        """Forgets what the teacher said, so that its memory can be used by others; there is no epoch after that."""
        self._teacher = None

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """All batches of an epoch.

        Errors: ``PixelsError`` naming the first key whose pixels are not those that the teacher saw: at once where
        pixels are made on the host, at the end of the epoch on a GPU (which would have to be waited for).
        """
        views, batches = self.plan.views_at(epoch), list(self.plan.batches(epoch))
        if self._teacher is not None:
            self._teacher.begin(views, batches)
        accepted = []
        if self._teacher is not None and self._close is not None:
            accepted = [self._close[cache.folder] for cache in self._teacher.compared]
        check = PixelCheck(at_once=self._at_once, accepted=accepted)
        for rows, on_device, pixels in self._pixels.epoch(batches, views):
            targets = self._teacher.targets(rows, on_device, pixels) if self._teacher is not None else Targets()
            if targets.digests:
                check.add(rows, views, pixels, targets.digests)
            visible, mixed = self._visible.index_select(0, on_device), self._mixed(rows, views)
            labels = visible if mixed is None else torch.where(mixed[1] >= 0.5, visible, mixed[0])
            yield Batch(on_device, pixels, labels, visible, mixed, targets)
        check.finish(views)

    def _mixed(self, rows: np.ndarray, views: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor] | None:
        of_views = zip(np.split(rows, len(views)), views, strict=True)
        mixing = [mixed for part, view in of_views if (mixed := self._viewed.mixing(part, view)) is not None]
        if not mixing:
            return None
        partners, weight = (np.concatenate(parts) for parts in zip(*mixing, strict=True))
        at = torch.from_numpy(partners).to(self.device)
        return self._visible.index_select(0, at), torch.from_numpy(weight).to(self.device)
