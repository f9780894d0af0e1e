"""``crd``: contrastive representation distillation, with a memory of every row."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from softcache.errors import UsageError
from softcache.losses._precision import full_precision
from softcache.losses.hints._draw import keyed_integers, keys
from softcache.losses.hints._seeded import seeded
from softcache.losses.hints._shapes import Shape, as_vector, check_shape, width

GATHERED_AT_ONCE = 1 << 25  # numbers of a bank that are copied at once, 128 MiB


@dataclass(frozen=True)
class CRD:
    """Noise-contrastive estimate of the information between student's and teacher's vectors, of both on both.

    Both are projected to ``dim`` and L2-normalized (the teacher's projection is trained too). For a row with
    embeddings s and t, ``P(x) = exp(x / temperature) / Z``, n rows and K ``negatives``, the loss is the mean
    of ``-log P(s·m_t[i]) / (P + K/n) - Σ_k log (K/n) / (P(s·m_t[k]) + K/n)`` plus the same of t with m_s.
    m_s, m_t: banks of every row's last embeddings, updated with ``momentum``; Z is set from the first batch.
    Negatives k are rows of other classes (for a row without label: any other row), drawn with replacement by
    a key of seed, step and row; no more than there are. Source: arXiv 1910.10699, and its
    code.

    Needs of the loop: ``row_labels`` in ``build``, the dataset row of each sample as ``indices``, the module
    in the optimizer, and its ``state_dict`` in the checkpoint (banks, Z and the step are buffers).
    """

    formula: ClassVar[str] = "-log P_i/(P_i + K/n) - Σ_k log (K/n)/(P_k + K/n), P = exp(s·m_t/τ)/Z; and t·m_s"
    source: ClassVar[str] = "CRD, arXiv 1910.10699"
    needs: ClassVar[str] = "vector, index, labels"
    default_weight: ClassVar[str] = "0.8"
    extras: ClassVar[tuple[str, ...]] = ("row_labels",)

    negatives: int = 16384
    temperature: float = 0.07
    momentum: float = 0.5
    dim: int = 128

    def __post_init__(self) -> None:
        if self.negatives < 1 or self.dim < 1 or self.temperature <= 0 or not 0 <= self.momentum < 1:
            raise UsageError("hint loss 'crd': negatives, dim, temperature above 0; momentum from 0 to below 1")

    def bank_bytes(self, rows: int) -> int:
        """What both banks take, to be said before they are allocated by ``build``."""
        return 2 * rows * self.dim * 4

    def build(
        self,
        student_shape: Shape,
        teacher_shape: Shape,
        *,
        rows: int,
        classes: int,
        seed: int,
        row_labels: torch.Tensor,
    ) -> nn.Module:
        """``row_labels`` (rows,) int64: of every row of the dataset, -1 where there is none to use.

        Errors: ``UsageError`` where all rows are of one class.
        """
        for shape in (student_shape, teacher_shape):
            check_shape(shape, "hint loss 'crd'")
        assert len(row_labels) == rows, (len(row_labels), rows)
        with seeded(seed):
            return _CRD(self, width(student_shape), width(teacher_shape), row_labels, seed)


class _CRD(nn.Module):
    def __init__(self, options: CRD, student: int, teacher: int, row_labels: torch.Tensor, seed: int) -> None:
        super().__init__()
        rows, self.seed = len(row_labels), seed
        self.temperature, self.momentum = options.temperature, options.momentum
        self.student, self.teacher = nn.Linear(student, options.dim), nn.Linear(teacher, options.dim)
        self.bank_s: torch.Tensor
        self.bank_t: torch.Tensor
        self.z: torch.Tensor
        self.step: torch.Tensor
        reach = 1 / math.sqrt(options.dim / 3)  # uniform vectors of length about 1
        for name in ("bank_s", "bank_t"):
            self.register_buffer(name, torch.empty(rows, options.dim).uniform_(-reach, reach))
        self.register_buffer("z", torch.full((2,), -1.0))  # of s·m_t and t·m_s, below 0 until the first batch
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self._sort_rows(row_labels.to(torch.int64))
        available = rows - max(1, int(self.count[:-1].max()) if len(self.count) > 1 else 1)
        if available < 1:
            raise UsageError("hint loss 'crd' contrasts classes, but all rows have one: choose another")
        self.negatives = min(options.negatives, available)

    def _sort_rows(self, labels: torch.Tensor) -> None:
        """Rows in order of their class, so that all but one class's are two ranges; unlabelled ones last."""
        self.group: torch.Tensor
        self.order: torch.Tensor
        self.rank: torch.Tensor
        self.start: torch.Tensor
        self.count: torch.Tensor
        classes = int(labels.max().clamp_min(-1)) + 1
        group = torch.where(labels >= 0, labels, classes)
        order = torch.argsort(group, stable=True)
        count = torch.bincount(group, minlength=classes + 1)
        for name, value in (
            ("group", group),
            ("order", order),
            ("rank", torch.argsort(order)),
            ("start", count.cumsum(0) - count),
            ("count", count),
        ):
            self.register_buffer(name, value, persistent=False)

    @full_precision
    def forward(
        self,
        student: torch.Tensor,
        teacher: torch.Tensor,
        *,
        indices: torch.Tensor,
        labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Activations and dataset rows (B,) int64 → scalar; the rows' labels are those of ``build``.

        While training, the banks take up the batch after it was scored, and the step advances.
        """
        s = F.normalize(self.student(as_vector(student)), dim=1)
        t = F.normalize(self.teacher(as_vector(teacher)), dim=1)
        chosen = torch.cat([indices[:, None], self.draw(indices)], dim=1)  # (B, 1 + K)
        total = self._contrast(s, self.bank_t, chosen, 0) + self._contrast(t, self.bank_s, chosen, 1)
        if self.training:
            with torch.no_grad():
                # A row may come several times (views of an image in one batch): the first is what is remembered by
                # all of them, so that the order of their writes doesn't matter.
                first = (indices[:, None] == indices).int().argmax(1)
                self._remember(self.bank_s, indices, s[first])
                self._remember(self.bank_t, indices, t[first])
                self.step += 1
        return total

    def draw(self, indices: torch.Tensor) -> torch.Tensor:
        """(B, K) int64: rows of other classes than each sample's; without a label, any but itself."""
        group, own = self.group[indices], self.rank[indices]
        known = group < len(self.count) - 1
        start = torch.where(known, self.start[group], own)
        count = torch.where(known, self.count[group], torch.ones_like(own))
        key = keys(self.seed, self.step, indices)
        position = keyed_integers(key, self.negatives, len(self.order) - count)
        return self.order[position + torch.where(position >= start[:, None], count[:, None], 0)]

    def _contrast(self, embeddings: torch.Tensor, bank: torch.Tensor, chosen: torch.Tensor, side: int) -> torch.Tensor:
        """The estimate's loss, its slope worked out at once, for the bank changes before the backward pass."""
        bank, rows, batch = bank.to(embeddings.dtype), len(bank), len(embeddings)
        with torch.no_grad():
            scores = _scores(embeddings, bank, chosen) / self.temperature
            z = torch.where(self.z[side] < 0, scores.exp().mean() * rows, self.z[side])
            if self.training:
                self.z[side] = z
            margins = scores - z.log() - math.log(self.negatives / rows)
            margins[:, 0] *= -1  # log(1 + noise/P) of the positive, log(1 + P/noise) of the negatives
            value = torch.logaddexp(margins, torch.zeros_like(margins)).sum() / batch
            if not embeddings.requires_grad:
                return value
            slopes = margins.sigmoid() / (self.temperature * batch)
            slopes[:, 0] *= -1
            pulls = _weighted_rows(slopes, bank, chosen)
        return value + ((embeddings - embeddings.detach()) * pulls).sum()

    def _remember(self, bank: torch.Tensor, indices: torch.Tensor, embeddings: torch.Tensor) -> None:
        mixed = bank[indices] * self.momentum + embeddings.to(bank.dtype) * (1 - self.momentum)
        bank[indices] = F.normalize(mixed, dim=1)


def _is_small(bank: torch.Tensor, chosen: torch.Tensor) -> bool:
    """Whether products with the whole bank cost less than copies of the chosen rows."""
    return len(bank) <= 16 * chosen.shape[1]


def _pieces(bank: torch.Tensor, chosen: torch.Tensor) -> int:
    """How many samples' chosen rows to copy at once."""
    return max(1, GATHERED_AT_ONCE // (chosen.shape[1] * bank.shape[1]))


def _scores(embeddings: torch.Tensor, bank: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """(B, 1 + K): the products of each embedding (B, D) with its chosen rows (B, 1 + K) of the bank (N, D)."""
    if _is_small(bank, chosen):
        return (embeddings @ bank.T).gather(1, chosen)
    step = _pieces(bank, chosen)
    pieces = zip(embeddings.split(step), chosen.split(step), strict=True)
    return torch.cat([(bank[rows] @ some[:, :, None]).squeeze(2) for some, rows in pieces])


def _weighted_rows(weights: torch.Tensor, bank: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """(B, D): each sample's chosen rows of the bank, summed with weights (B, 1 + K).

    Where a row was chosen twice its weights are equal, so one is multiplied by how often: writing equal numbers
    to one place, unlike adding them there, gives the same bits in any order.
    """
    if _is_small(bank, chosen):
        dense = torch.zeros(len(chosen), len(bank), dtype=bank.dtype, device=bank.device)
        times = dense.scatter_add(1, chosen, torch.ones_like(weights)).gather(1, chosen)
        return dense.scatter_(1, chosen, weights * times) @ bank
    step = _pieces(bank, chosen)
    pieces = zip(weights.split(step), chosen.split(step), strict=True)
    return torch.cat([(some[:, None, :] @ bank[rows]).squeeze(1) for some, rows in pieces])
