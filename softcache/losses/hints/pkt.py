"""``pkt``: probabilistic knowledge transfer, which compares each sample's neighbours in the batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from softcache.errors import UsageError
from softcache.losses._contract import Need
from softcache.losses._precision import full_precision
from softcache.losses.hints._hint_loss import HintLoss
from softcache.losses.hints._shapes import Shape, as_vector, check_shape


@dataclass(frozen=True)
class PKT(HintLoss):
    """``mean_{B×B} p_t log((p_t + eps) / (p_s + eps))``; p: rows of ``(cos + 1)/2``, normalized to sum 1.

    ``eps`` keeps the loss finite for opposite vectors, whose p is 0. Maps and tokens are averaged over their positions,
    and nothing is trained. Source: arXiv 1803.10837.

    >>> module = PKT().build((2,), (2,), row_count=2, classes=2, seed=0)
    >>> loss = module(torch.eye(2), torch.ones(2, 2))  # p_s: rows of (2/3, 1/3); p_t: all 1/2
    >>> round(loss.item(), 4)  # log(9/8) / 4
    0.0294
    """

    formula: ClassVar[str] = "mean p_t log(p_t / p_s), p rows of (cos + 1)/2 that sum to 1"
    source: ClassVar[str] = "PKT, arXiv 1803.10837"
    example: ClassVar[str] = "--hint pkt:teacher=fc:in,student=fc:in --alpha 0 --beta 1"
    needs: ClassVar[frozenset[Need]] = frozenset({"vectors"})
    default_weight: ClassVar[str] = "30000"
    zero_for_perfect: ClassVar[bool] = True

    eps: float = 1e-7

    def __post_init__(self) -> None:
        if not 0 < self.eps < math.inf:
            raise UsageError(f"hint loss 'pkt': eps={self.eps:g} must be above 0, so that logarithms are finite")

    def build(
        self, student_shape: Shape, teacher_shape: Shape, *, row_count: int, classes: int, seed: int
    ) -> nn.Module:
        for shape in (student_shape, teacher_shape):
            check_shape(shape, "hint loss 'pkt'")
        return _PKT(self.eps)


class _PKT(nn.Module):
    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    @full_precision
    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        p_s, p_t = _neighbours(student), _neighbours(teacher)
        return (p_t * ((p_t + self.eps).log() - (p_s + self.eps).log())).mean()


def _neighbours(x: torch.Tensor) -> torch.Tensor:
    unit = F.normalize(as_vector(x), dim=1)
    kernel = ((unit @ unit.T + 1) / 2).clamp(0, 1)  # rounding may leave the range
    return kernel / kernel.sum(1, keepdim=True)
