"""Batches of keys with all that the loss needs: inputs, labels and targets, with each key's inputs checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from softcache.cache.agreement.digests import CloseRows, PixelCheck
from softcache.cache.reader import Cache
from softcache.datasets._labels import label_kind
from softcache.fields import Fields, Inputs
from softcache.losses._target import changed
from softcache.ragged import Int64, Offsets, offsets_of
from softcache.stream.counts import Counts
from softcache.stream.inputs import InputSource
from softcache.stream.parts import Part, Parts, key_rows
from softcache.stream.plan import Plan
from softcache.stream.targets import Targets, joined
from softcache.views._open import Viewed


class TargetSource(Protocol):
    """Gives the targets of keys, wherever they come from."""

    name: str

    @property
    def compared(self) -> Sequence[Cache]:
        """Whose digests ``targets`` gives, one after the other; none where inputs are any."""
        ...

    @property
    def seconds(self) -> float:
        """Seconds that the teacher itself has computed so far."""
        ...

    def begin(self, batches: Sequence[Parts]) -> None:
        """Prepares for an epoch of these batches."""
        ...

    def soon(self, views: Sequence[int]) -> None:
        """Says which recorded views the next epoch has, so that they may be fetched."""
        ...

    def targets(self, part: Part, rows: torch.Tensor, inputs: Inputs) -> Targets:
        """Those of a part of n keys. ``rows`` (n,) int64: theirs; ``inputs``: theirs; both on the device."""
        ...


@dataclass
class Batch:
    """A batch holds only labels that may be used in training; -1 stands for the others and for no label.

    ``inputs``: pixels (B, H, W, C), or other named tensors. ``visible``: the rows' labels, (B,) int64 of classes;
    else (B, K) uint8 or (B,) or (B, K) float32, with 255 or NaN for none. ``mixed``: of samples that are mixed with a
    partner, the partners' labels and the weight of the own label (B,) float32. ``labels``: for losses that take one
    label a sample; of a mixed sample the label with the larger weight. ``offsets``: of targets whose rows
    have lengths of their own, by the name of their column, where each row's begin. ``counts``: what the losses count of
    each batch of the epoch.
    """

    rows: torch.Tensor
    inputs: Inputs
    labels: torch.Tensor
    visible: torch.Tensor
    mixed: tuple[torch.Tensor, torch.Tensor] | None
    targets: Targets
    offsets: Offsets
    counts: Counts

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        """A batch of changed tensors, all in the same order in every batch of one stream. Digests are left out."""
        outputs = {name: [changed(target, change) for target in each] for name, each in self.targets.outputs.items()}
        hints = {layer: change(values) for layer, values in self.targets.hints.items()}
        return Batch(
            change(self.rows),
            self.inputs.each(change) if isinstance(self.inputs, Fields) else change(self.inputs),
            change(self.labels),
            change(self.visible),
            None if self.mixed is None else (change(self.mixed[0]), change(self.mixed[1])),
            Targets(outputs, hints),
            self.offsets,
            self.counts,
        )

    @property
    def fixed(self) -> bool:
        """Whether all rows of the inputs and targets are of one length."""
        return not self.offsets and not (isinstance(self.inputs, Fields) and self.inputs.lengths)


class Stream:
    """Makes the batches of each epoch of a training, on the device."""

    def __init__(
        self,
        viewed: Viewed,
        inputs: InputSource,
        plan: Plan,
        device: torch.device,
        *,
        visible: np.ndarray,
        teacher: TargetSource | None,
        close: Mapping[Path, CloseRows] | None = None,
        places: Mapping[str, Int64] | None = None,
        epochs: int = 0,
    ):
        """``epochs``: how many there will be, so that nothing is fetched for one after the last.
        ``close``: by a cache's folder, whose inputs may differ from what its teacher saw; None where none may.
        ``places``: of targets whose rows have lengths of their own, column → (N,) how many places each row has."""
        self.plan = plan
        self.name = inputs.name
        self.targets = teacher.name if teacher is not None else "from labels"
        self._viewed = viewed
        self._inputs = inputs
        self.device = device
        self._teacher = teacher
        self._close = close
        self._places = places or {}
        self._epochs = epochs
        self._labels = visible
        self._visible = trained_labels(visible).to(device)
        self._at_once = device.type == "cpu"

    @property
    def teacher_seconds(self) -> float:
        """Seconds that the teacher itself has taken so far in this process."""
        return self._teacher.seconds if self._teacher is not None else 0.0

    def release(self) -> None:
        """Frees the memory that targets take. No epoch can be made after that."""
        self._teacher = None

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """All batches of an epoch.

        Errors: ``PixelsError`` naming the first key whose inputs are not those that the teacher saw. On a CPU it is
        raised with that batch; on a GPU at the end of the epoch, so that no step has to wait for the device.
        """
        shares = list(self.plan.shares(epoch))
        batches = [of_ranks[self.plan.share[0]] for of_ranks in shares]
        counts = Counts(shares, self._labels, self._places, self._viewed.mixing)
        if self._teacher is not None:
            self._teacher.begin(batches)
            if epoch + 1 < self._epochs and self.plan.views is not None:
                self._teacher.soon(self.plan.views_at(epoch + 1))
        accepted = []
        if self._teacher is not None and self._close is not None:
            accepted = [self._close[cache.folder] for cache in self._teacher.compared]
        check = PixelCheck(self._viewed.digest, at_once=self._at_once, accepted=accepted)
        for parts, on_device, inputs in self._inputs.epoch(batches):
            targets = self._targets(parts, on_device, inputs, check)
            visible, mixed = self._visible.index_select(0, on_device), self._mixed(parts)
            labels = visible if mixed is None else _larger_share(visible, *mixed)
            offsets = {name: offsets_of(places.take(key_rows(parts))) for name, places in self._places.items()}
            yield Batch(on_device, inputs, labels, visible, mixed, targets, offsets, counts)
        check.finish()

    def _targets(self, parts: Parts, on_device: torch.Tensor, inputs: Inputs, check: PixelCheck) -> Targets:
        """Those of a batch. ``check`` gets the keys of those parts whose targets go with the inputs."""
        if self._teacher is None:
            return Targets()
        found, at = [], 0
        for part in parts:
            keys = slice(at, at + len(part))
            of_part = self._teacher.targets(part, on_device[keys], inputs[keys])
            if of_part.digests:
                check.add(part.key_rows, part.views, inputs[keys], of_part.digests)
            found.append(of_part)
            at = keys.stop
        return joined(found)

    def _mixed(self, parts: Parts) -> tuple[torch.Tensor, torch.Tensor] | None:
        of_views = [(part.rows, view) for part in parts for view in part.views]
        mixing = [mixed for rows, view in of_views if (mixed := self._viewed.mixing(rows, view)) is not None]
        if not mixing:
            return None
        partners, weight = (np.concatenate(found) for found in zip(*mixing, strict=True))
        at = torch.from_numpy(partners).to(self.device)
        return self._visible.index_select(0, at), torch.from_numpy(weight).to(self.device)


def trained_labels(labels: np.ndarray) -> torch.Tensor:
    """A dataset's labels as a tensor; those of classes as int64."""
    return torch.from_numpy(labels.astype(np.int64) if label_kind(labels) == "classes" else labels)


def _larger_share(own: torch.Tensor, partner: torch.Tensor, weight_b: torch.Tensor) -> torch.Tensor:
    return torch.where(weight_b.view(-1, *[1] * (own.ndim - 1)) >= 0.5, own, partner)
