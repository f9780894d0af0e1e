"""``pkt``: probabilistic knowledge transfer, which compares each sample's neighbours in the batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from softcache.errors import UsageError
from softcache.losses._contract import Kind, Need, Scope
from softcache.losses._loss import Loss
from softcache.losses._precision import full_precision


@dataclass(frozen=True)
class PKT(Loss):
    """``mean_{B×B} p_t log((p_t + eps) / (p_s + eps))``; p: rows of ``(cos + 1)/2``, normalized to sum 1.

    ``eps`` keeps the loss finite for opposite vectors, whose p is 0. Source: arXiv 1803.10837.

    >>> loss = PKT()(torch.eye(2), torch.ones(2, 2), T=1.0)  # p_s: rows of (2/3, 1/3); p_t: all 1/2
    >>> round(loss.item(), 4)  # log(9/8) / 4
    0.0294
    """

    formula: ClassVar[str] = "mean p_t log(p_t / p_s), p rows of (cos + 1)/2 that sum to 1"
    source: ClassVar[str] = "PKT, arXiv 1803.10837"
    example: ClassVar[str] = "--loss pkt:of=embedding"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"values"})
    scope: ClassVar[Scope] = "batch"
    needs: ClassVar[frozenset[Need]] = frozenset({"vectors"})
    default_beta: ClassVar[float] = 0.0
    default_weight: ClassVar[str] = "30000"
    standardizes: ClassVar[bool] = False
    least_classes: ClassVar[int] = 1
    zero_for_perfect: ClassVar[bool] = True

    eps: float = 1e-7

    def __post_init__(self) -> None:
        if not 0 < self.eps < math.inf:
            raise UsageError(f"loss 'pkt': eps={self.eps:g} must be above 0, so that logarithms are finite")

    @full_precision
    def __call__(
        self, student: torch.Tensor, teacher: torch.Tensor, T: float, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Vectors (B, D) of student and teacher, whose D may differ → a scalar. ``T`` and ``labels`` are ignored."""
        p_s, p_t = _neighbours(student), _neighbours(teacher)
        return (p_t * ((p_t + self.eps).log() - (p_s + self.eps).log())).mean()


def _neighbours(x: torch.Tensor) -> torch.Tensor:
    unit = F.normalize(x, dim=1)
    kernel = ((unit @ unit.T + 1) / 2).clamp(0, 1)  # rounding may leave the range
    return kernel / kernel.sum(1, keepdim=True)
