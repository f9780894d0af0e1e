"""Batches of keys with everything the loss wants: pixels, labels, and what the teacher says, checked key by key."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from softcache.errors import PixelsError
from softcache.training.pixels import PixelSource
from softcache.training.plan import Plan
from softcache.training.teacher import CachedTeacher, LiveTeacher, Said
from softcache.views._digest import digest
from softcache.views._viewed import ViewedDataset


@dataclass
class Batch:
    """``pixels`` (B, H, W, C) uint8; ``labels`` and ``visible`` (B,) int64, -1 where there is none, or none that the
    hard term may use; ``mixed``: the partners' visible labels and the own label's weight, both (B,)."""

    rows: torch.Tensor
    pixels: torch.Tensor
    labels: torch.Tensor
    visible: torch.Tensor
    mixed: tuple[torch.Tensor, torch.Tensor] | None
    said: Said


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
        teacher: CachedTeacher | LiveTeacher | None,
        exact: bool = True,
    ):
        self.plan = plan
        self.name = pixels.name
        self._viewed = viewed
        self._pixels = pixels
        self._device = device
        self._teacher = teacher
        self._exact = exact
        self._labels = torch.from_numpy(viewed.samples.labels.astype(np.int64)).to(device)
        self._visible = torch.from_numpy(visible.astype(np.int64)).to(device)
        self._wrong = torch.zeros((), dtype=torch.int64, device=device)

    @property
    def teacher_seconds(self) -> float:
        """Seconds that the teacher itself has taken so far in this process."""
        return self._teacher.seconds if self._teacher is not None else 0.0

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """All batches of an epoch.

        Errors: ``PixelsError`` naming the first key whose pixels are not those that the teacher saw: at once where
        pixels are made on the host, at the end of the epoch on a GPU (which would have to be waited for).
        """
        view = self.plan.view(epoch)
        if self._teacher is not None:
            self._teacher.begin(view)
        for rows, on_device, pixels in self._pixels.epoch(list(self.plan.batches(epoch)), view):
            said = self._teacher.say(rows, on_device, pixels) if self._teacher is not None else Said()
            if said.digests and self._exact:
                self._check(rows, view, pixels, said.digests)
            yield Batch(
                on_device,
                pixels,
                self._labels.index_select(0, on_device),
                self._visible.index_select(0, on_device),
                self._mixed(rows, view),
                said,
            )
        if self._device.type != "cpu" and int(self._wrong):
            raise PixelsError(f"{int(self._wrong)} keys of view {view} have other pixels than the teacher saw")

    def _mixed(self, rows: np.ndarray, view: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        mixing = self._viewed.mixing(rows, view)
        if mixing is None:
            return None
        partners, weight = mixing
        at = torch.from_numpy(partners).to(self._device)
        return self._visible.index_select(0, at), torch.from_numpy(weight).to(self._device)

    def _check(self, rows: np.ndarray, view: int, pixels: torch.Tensor, expected: list[torch.Tensor]) -> None:
        ours = digest(pixels)
        for theirs in expected:
            differs = ours != theirs
            if self._device.type == "cpu":
                if bool(differs.any()):
                    row = int(rows[int(differs.nonzero()[0, 0])])
                    raise PixelsError(
                        f"row {row} in view {view} has other pixels than the teacher saw "
                        f"({int(differs.sum())} of {len(rows)} keys of this batch differ)"
                    )
            else:
                self._wrong += differs.sum()
