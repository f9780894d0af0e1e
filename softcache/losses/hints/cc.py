"""``cc``: correlation congruence between the samples of a batch."""

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
class CC(HintLoss):
    """``mean_{B×B} (K(f_s) - K(f_t))²``, K the Gaussian kernel of L2-normalized vectors as a Taylor series.

    ``K_ij = exp(-2 gamma) Σ_{p=0}^{order} (2 gamma)^p / p! (f_i · f_j)^p``. The weight 0.02 of some collections belongs
    to another formula. Maps and tokens are averaged over their positions, and nothing is trained.
    Source: arXiv 1904.01802.

    >>> module = CC().build((2,), (2,), row_count=2, classes=2, seed=0)
    >>> module(torch.eye(2), torch.ones(2, 2))  # half of the entries differ, by 1.12 · exp(-0.8)
    tensor(0.1266)
    """

    formula: ClassVar[str] = "mean (K(f_s) - K(f_t))², K = e^(-2γ) Σ_{p≤P} (2γ)^p/p! (f̂ f̂ᵀ)^p"
    source: ClassVar[str] = "Correlation congruence, arXiv 1904.01802"
    example: ClassVar[str] = "--hint cc:teacher=fc:in,student=fc:in --alpha 0 --beta 1"
    needs: ClassVar[frozenset[Need]] = frozenset({"vectors"})
    default_weight: ClassVar[str] = "0.003"
    zero_for_perfect: ClassVar[bool] = True

    gamma: float = 0.4
    order: int = 2

    def __post_init__(self) -> None:
        if self.order < 1:
            raise UsageError(f"hint loss 'cc': order={self.order} must be 1 or more")

    def build(
        self, student_shape: Shape, teacher_shape: Shape, *, row_count: int, classes: int, seed: int
    ) -> nn.Module:
        for shape in (student_shape, teacher_shape):
            check_shape(shape, "hint loss 'cc'")
        return _CC(self.gamma, self.order)


class _CC(nn.Module):
    def __init__(self, gamma: float, order: int) -> None:
        super().__init__()
        factors = [(2 * gamma) ** p / math.factorial(p) for p in range(order + 1)]
        self.coefficients = [math.exp(-2 * gamma) * f for f in factors]

    @full_precision
    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(self._kernel(student), self._kernel(teacher))

    def _kernel(self, x: torch.Tensor) -> torch.Tensor:
        unit = F.normalize(as_vector(x), dim=1)
        cosines = unit @ unit.T  # (B, B)
        total = torch.full_like(cosines, self.coefficients[-1])
        for coefficient in reversed(self.coefficients[:-1]):  # Horner's scheme
            total = total * cosines + coefficient
        return total
