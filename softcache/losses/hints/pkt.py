"""``pkt``: probabilistic knowledge transfer, the batch as a distribution of neighbours."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from softcache.errors import UsageError
from softcache.losses._precision import full_precision
from softcache.losses.hints._shapes import Shape, as_vector, check_shape


@dataclass(frozen=True)
class PKT:
    """``mean_{B×B} p_t log((p_t + eps) / (p_s + eps))``; p: rows of ``(cos + 1)/2``, normalized to sum 1.

    ``eps`` keeps opposite vectors, whose p is 0, finite. Maps and tokens are averaged over their places;
    nothing is trained. Source: arXiv 1803.10837.
    """

    formula: ClassVar[str] = "mean p_t log(p_t / p_s), p rows of (cos + 1)/2 that sum to 1"
    source: ClassVar[str] = "PKT, arXiv 1803.10837"
    needs: ClassVar[str] = "vector"
    default_weight: ClassVar[str] = "30000"
    zero_for_perfect: ClassVar[bool] = True

    eps: float = 1e-7

    def __post_init__(self) -> None:
        if not 0 < self.eps < math.inf:
            raise UsageError(f"hint loss 'pkt': eps={self.eps:g} keeps logarithms finite: it must be above 0")

    def build(self, student_shape: Shape, teacher_shape: Shape, *, rows: int, classes: int, seed: int) -> nn.Module:
        for shape in (student_shape, teacher_shape):
            check_shape(shape, "hint loss 'pkt'")
        return _PKT(self.eps)


class _PKT(nn.Module):
    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    @full_precision
    def forward(
        self,
        student: torch.Tensor,
        teacher: torch.Tensor,
        *,
        indices: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        p_s, p_t = _neighbours(student), _neighbours(teacher)
        return (p_t * ((p_t + self.eps).log() - (p_s + self.eps).log())).mean()


def _neighbours(x: torch.Tensor) -> torch.Tensor:
    unit = F.normalize(as_vector(x), dim=1)
    kernel = ((unit @ unit.T + 1) / 2).clamp(0, 1)  # rounding may step over the ends
    return kernel / kernel.sum(1, keepdim=True)
