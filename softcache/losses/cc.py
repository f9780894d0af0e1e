"""``cc``: correlation congruence between the samples of a batch."""

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
class CC(Loss):
    """``mean_{B×B} (K(f_s) - K(f_t))²``, K the Gaussian kernel of L2-normalized vectors as a Taylor series.

    ``K_ij = exp(-2 gamma) Σ_{p=0}^{order} (2 gamma)^p / p! (f_i · f_j)^p``. The weight 0.02 of some collections belongs
    to another formula. Source: arXiv 1904.01802.

    >>> CC()(torch.eye(2), torch.ones(2, 2), T=1.0)  # half of the entries differ, by 1.12 · exp(-0.8)
    tensor(0.1266)
    """

    formula: ClassVar[str] = "mean (K(f_s) - K(f_t))², K = e^(-2γ) Σ_{p≤P} (2γ)^p/p! (f̂ f̂ᵀ)^p"
    source: ClassVar[str] = "Correlation congruence, arXiv 1904.01802"
    example: ClassVar[str] = "--loss cc:of=embedding"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"values"})
    scope: ClassVar[Scope] = "batch"
    needs: ClassVar[frozenset[Need]] = frozenset({"vectors"})
    default_beta: ClassVar[float] = 0.0
    default_weight: ClassVar[str] = "0.003"
    standardizes: ClassVar[bool] = False
    least_classes: ClassVar[int] = 1
    zero_for_perfect: ClassVar[bool] = True

    gamma: float = 0.4
    order: int = 2

    def __post_init__(self) -> None:
        if self.order < 1:
            raise UsageError(f"loss 'cc': order={self.order} must be 1 or more")

    @full_precision
    def __call__(
        self, student: torch.Tensor, teacher: torch.Tensor, T: float, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Vectors (B, D) of student and teacher, whose D may differ → a scalar. ``T`` and ``labels`` are ignored."""
        return F.mse_loss(self._kernel(student), self._kernel(teacher))

    def _kernel(self, x: torch.Tensor) -> torch.Tensor:
        unit = F.normalize(x, dim=1)
        cosines = unit @ unit.T  # (B, B)
        factors = [math.exp(-2 * self.gamma) * (2 * self.gamma) ** p / math.factorial(p) for p in range(self.order + 1)]
        total = torch.full_like(cosines, factors[-1])
        for factor in reversed(factors[:-1]):  # Horner's scheme
            total = total * cosines + factor
        return total
