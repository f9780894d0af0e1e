"""``crd``: contrastive representation distillation, with a memory bank of every row."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import nn

from softcache.errors import UsageError
from softcache.losses._contract import Need, Scope
from softcache.losses._precision import full_precision
from softcache.losses.hints._draw import keyed_integers, keys
from softcache.losses.hints._hint_loss import HintLoss
from softcache.losses.hints._seeded import seeded
from softcache.losses.hints._shapes import Shape, as_vector, check_shape, width

GATHERED_AT_ONCE = 1 << 25  # elements of a bank that are copied at once, 128 MiB


@dataclass(frozen=True)
class CRD(HintLoss):
    """Noise-contrastive estimation of the information that the student's and the teacher's vectors share.

    Both vectors are projected to ``dim`` and L2-normalized; the teacher's projection is trained too. Let s and t be the
    embeddings of row i, n the number of rows that are trained on, K ``negatives`` and
    ``P(x) = exp(x / temperature) / Z``. The loss is the mean over the batch of
    ``-log P(s·m_t[i]) / (P(s·m_t[i]) + K/n) - Σ_k log (K/n) / (P(s·m_t[k]) + K/n)`` plus the same of t with m_s.

    The banks m_s and m_t hold the last embeddings of every row and are updated with ``momentum``. Z is set from the
    first batch. The negatives k are rows of other classes (any other row for one without a label). They are drawn with
    replacement by a hash of seed, step and row, and there are no more than rows of other classes.

    The module's parameters belong to the optimizer, and its ``state_dict`` to the checkpoint: banks, Z and the step are
    buffers. Source: arXiv 1910.10699, and its code.

    >>> labels = torch.tensor([0, 0, 1, 1])
    >>> crd = CRD(dim=8)
    >>> module = crd.build((3,), (5,), row_count=4, classes=2, seed=0, row_labels=labels)
    >>> module.negatives  # of 4 rows, 2 are of another class
    2
    >>> loss = module(torch.randn(2, 3), torch.randn(2, 5), positions=torch.tensor([0, 3]))
    >>> loss.shape, crd.bank_bytes(row_count=4)
    (torch.Size([]), 256)
    """

    formula: ClassVar[str] = "-log P_i/(P_i + K/n) - Σ_k log (K/n)/(P_k + K/n), P = exp(s·m_t/τ)/Z; and t·m_s"
    source: ClassVar[str] = "CRD, arXiv 1910.10699"
    example: ClassVar[str] = "--hint crd:teacher=fc:in,student=fc:in --alpha 0 --beta 1"
    scope: ClassVar[Scope] = "batch"
    needs: ClassVar[frozenset[Need]] = frozenset({"vectors", "positions", "row labels"})
    default_weight: ClassVar[str] = "0.8"
    of_lengths: ClassVar[Literal["places", "rows"] | None] = "rows"

    negatives: int = 16384
    temperature: float = 0.07
    momentum: float = 0.5
    dim: int = 128

    def __post_init__(self) -> None:
        if self.negatives < 1 or self.dim < 1 or self.temperature <= 0 or not 0 <= self.momentum < 1:
            raise UsageError(
                "hint loss 'crd': negatives, dim and temperature must be above 0, momentum from 0 to below 1, found "
                f"{self.negatives}, {self.dim}, {self.temperature:g} and {self.momentum:g}"
            )

    def bank_bytes(self, row_count: int) -> int:
        """Bytes of both banks in float32."""
        return 2 * row_count * self.dim * 4

    def build(
        self,
        student_shape: Shape,
        teacher_shape: Shape,
        *,
        row_count: int,
        classes: int,
        seed: int,
        row_labels: torch.Tensor,
    ) -> nn.Module:
        """``row_labels`` (row_count,) int64: the labels of the rows that are trained on, -1 for a row without one.

        Errors: ``UsageError`` where all rows are of one class.
        """
        for shape in (student_shape, teacher_shape):
            check_shape(shape, "hint loss 'crd'")
        assert len(row_labels) == row_count, (len(row_labels), row_count)
        with seeded(seed):
            return _CRD(self, width(student_shape), width(teacher_shape), row_labels, seed)


class _CRD(nn.Module):
    def __init__(self, options: CRD, student: int, teacher: int, row_labels: torch.Tensor, seed: int) -> None:
        super().__init__()
        row_count, self.seed = len(row_labels), seed
        self.temperature, self.momentum = options.temperature, options.momentum
        self.student, self.teacher = nn.Linear(student, options.dim), nn.Linear(teacher, options.dim)
        self.bank_s: torch.Tensor
        self.bank_t: torch.Tensor
        self.z: torch.Tensor
        self.step: torch.Tensor
        reach = 1 / math.sqrt(options.dim / 3)  # uniform vectors of length about 1
        for name in ("bank_s", "bank_t"):
            self.register_buffer(name, torch.empty(row_count, options.dim).uniform_(-reach, reach))
        self.register_buffer("z", torch.full((2,), -1.0))  # for s·m_t and t·m_s; negative until the first batch
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self._sort_rows(row_labels.to(torch.int64))
        available = row_count - max(1, int(self.count[:-1].max()) if len(self.count) > 1 else 1)
        if available < 1:
            raise UsageError(
                "hint loss 'crd' contrasts classes, but all rows have the same class: choose another hint loss"
            )
        self.negatives = min(options.negatives, available)

    def _sort_rows(self, labels: torch.Tensor) -> None:
        """Sorts rows by class, unlabelled ones last, so that the rows of all other classes are two ranges."""
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
        positions: torch.Tensor,
    ) -> torch.Tensor:
        """Activations, batch first, and positions (B,) int64 among the rows that are trained on → a scalar.

        In training mode the banks are updated with the batch after it was scored, and the step advances.
        """
        s = F.normalize(self.student(as_vector(student)), dim=1)
        t = F.normalize(self.teacher(as_vector(teacher)), dim=1)
        chosen = torch.cat([positions[:, None], self.draw(positions)], dim=1)  # (B, 1 + K)
        total = self._contrast(s, self.bank_t, chosen, 0) + self._contrast(t, self.bank_s, chosen, 1)
        if self.training:
            with torch.no_grad():
                # A row may be in a batch several times, as several views of one image. All of them write the
                # embedding of the first, so that the order of writes doesn't matter.
                first = (positions[:, None] == positions).int().argmax(1)
                self._remember(self.bank_s, positions, s[first])
                self._remember(self.bank_t, positions, t[first])
                self.step += 1
        return total

    def draw(self, positions: torch.Tensor) -> torch.Tensor:
        """(B, K) int64: for each sample, positions of rows of other classes; without a label, of any other row."""
        group, own = self.group[positions], self.rank[positions]
        known = group < len(self.count) - 1
        start = torch.where(known, self.start[group], own)
        count = torch.where(known, self.count[group], torch.ones_like(own))
        key = keys(self.seed, self.step, positions)
        drawn = keyed_integers(key, self.negatives, len(self.order) - count)
        return self.order[drawn + torch.where(drawn >= start[:, None], count[:, None], 0)]

    def _contrast(self, embeddings: torch.Tensor, bank: torch.Tensor, chosen: torch.Tensor, side: int) -> torch.Tensor:
        """The loss of one side. Its gradient is computed now, because the bank changes before the backward pass."""
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

    def _remember(self, bank: torch.Tensor, positions: torch.Tensor, embeddings: torch.Tensor) -> None:
        mixed = bank[positions] * self.momentum + embeddings.to(bank.dtype) * (1 - self.momentum)
        bank[positions] = F.normalize(mixed, dim=1)


def _is_small(bank: torch.Tensor, chosen: torch.Tensor) -> bool:
    """Whether a product with the whole bank costs less than copying the chosen rows."""
    return len(bank) <= 16 * chosen.shape[1]


def _pieces(bank: torch.Tensor, chosen: torch.Tensor) -> int:
    """The number of samples whose chosen rows are copied at once."""
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

    A row that was chosen several times has equal weights, so one weight is multiplied by the number of times. Unlike
    adding, writing equal numbers to one element gives the same bits in any order.
    """
    if _is_small(bank, chosen):
        dense = torch.zeros(len(chosen), len(bank), dtype=bank.dtype, device=bank.device)
        times = dense.scatter_add(1, chosen, torch.ones_like(weights)).gather(1, chosen)
        return dense.scatter_(1, chosen, weights * times) @ bank
    step = _pieces(bank, chosen)
    pieces = zip(weights.split(step), chosen.split(step), strict=True)
    return torch.cat([(some[:, None, :] @ bank[rows]).squeeze(1) for some, rows in pieces])
