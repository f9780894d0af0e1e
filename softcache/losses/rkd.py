"""``rkd``: relations between samples, as distances and angles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from softcache.losses._contract import Kind, Need, Scope
from softcache.losses._loss import Loss
from softcache.losses._precision import full_precision

COSINES_AT_ONCE = 1 << 22  # 16 MiB of float32


@dataclass(frozen=True)
class RKD(Loss):
    """``distance · smoothL1(d_s, d_t) + angle · smoothL1(cos_s, cos_t)``, means over B² pairs and B³ triples.

    d: Euclidean distances, divided by their mean. cos: the cosine of the angle at i between j and k. The loss doesn't
    change when the vectors of one side are shifted, rotated or scaled. Samples that coincide up to rounding have
    distance 0 and cosine 0. Source: arXiv 1904.05068.

    >>> student = torch.eye(3, dtype=torch.float64)
    >>> round(RKD()(student, 3 * student + 1, T=1.0).item(), 9)
    0.0
    """

    formula: ClassVar[str] = "distance smoothL1(d_s, d_t) + angle smoothL1(cos_s, cos_t), pairs and triples"
    source: ClassVar[str] = "RKD, arXiv 1904.05068"
    example: ClassVar[str] = "--loss rkd:of=embedding"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"values"})
    scope: ClassVar[Scope] = "batch"
    needs: ClassVar[frozenset[Need]] = frozenset({"vectors"})
    default_beta: ClassVar[float] = 0.0
    standardizes: ClassVar[bool] = False
    least_classes: ClassVar[int] = 1
    zero_for_perfect: ClassVar[bool] = True

    distance: float = 25.0
    angle: float = 50.0

    @full_precision
    def __call__(
        self, student: torch.Tensor, teacher: torch.Tensor, T: float, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Vectors (B, D) of student and teacher, whose D may differ → a scalar. ``T`` and ``labels`` are ignored."""
        gram_s, distances_s, mean_s = _relations(student)
        gram_t, distances_t, mean_t = _relations(teacher)
        total = self.distance * F.smooth_l1_loss(distances_s / mean_s, distances_t / mean_t)
        if self.angle:
            inverse_s, inverse_t = _inverse(distances_s), _inverse(distances_t)
            total = total + self.angle * _angles(gram_s, inverse_s, gram_t, inverse_t)
        return total


def _relations(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Products (B, B) of the centred vectors, their distances (B, B), and the mean of the distances above 0.

    Distances are computed from products, because the differences of all pairs would take B times the memory.
    """
    x = x - x.mean(0)
    gram = x @ x.T
    squares = gram.diagonal()
    both = squares[:, None] + squares[None, :]
    squared = both - 2 * gram
    apart = squared > 16 * torch.finfo(x.dtype).eps * both
    distances = squared.masked_fill(~apart, 1.0).sqrt().masked_fill(~apart, 0.0)
    mean = distances.sum() / apart.sum().clamp_min(1)
    return gram, distances, torch.where(mean > 0, mean, torch.ones_like(mean))


def _inverse(distances: torch.Tensor) -> torch.Tensor:
    """1/d, and 0 for d 0: a direction that doesn't exist then has cosine 0 with every other."""
    zero = distances == 0
    return distances.masked_fill(zero, 1.0).reciprocal().masked_fill(zero, 0.0)


def _angles(
    gram_s: torch.Tensor, inverse_s: torch.Tensor, gram_t: torch.Tensor, inverse_t: torch.Tensor
) -> torch.Tensor:
    """Mean smooth L1 loss of all B³ cosines. Large batches hold the cosines of a few corners at a time."""
    batch = len(gram_s)
    step = max(1, COSINES_AT_ONCE // batch**2)

    def part(gs: torch.Tensor, vs: torch.Tensor, gt: torch.Tensor, vt: torch.Tensor, first: int) -> torch.Tensor:
        corners = slice(first, first + step)
        return F.smooth_l1_loss(_cosines(gs, vs, corners), _cosines(gt, vt, corners), reduction="sum")

    arguments = (gram_s, inverse_s, gram_t, inverse_t)
    if step >= batch:
        return part(*arguments, 0) / batch**3
    parts = [
        checkpoint(part, *arguments, first, use_reentrant=False, preserve_rng_state=False)
        for first in range(0, batch, step)
    ]
    return torch.stack(parts).sum() / batch**3


def _cosines(gram: torch.Tensor, inverse: torch.Tensor, corners: slice) -> torch.Tensor:
    """(I, B, B): ``<x_j - x_i, x_k - x_i> / (d_ij d_ik)`` for the corners i."""
    to_corner = gram[corners]  # (I, B)
    own = gram.diagonal()[corners][:, None]
    products = gram + (own - to_corner)[:, :, None] - to_corner[:, None, :]
    return products * inverse[corners][:, :, None] * inverse[corners][:, None, :]
