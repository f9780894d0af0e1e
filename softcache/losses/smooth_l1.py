"""``smooth_l1``: squared differences near 0, absolute ones beyond."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from softcache.errors import UsageError
from softcache.losses._contract import Kind
from softcache.losses._loss import Loss
from softcache.losses._precision import full_precision


@dataclass(frozen=True)
class SmoothL1(Loss):
    """Mean over batch and outputs of ``d²/(2 beta)`` for ``|d| < beta``, else ``|d| - beta/2``; d: ``f_s - f_t``.

    Where a teacher is far off for a few samples their gradients stay as large as those of others, unlike with ``mse``.
    It has no temperature. Source: Fast R-CNN, arXiv 1504.08083, equation 3, where beta is 1.

    >>> SmoothL1()(torch.zeros(1, 2), torch.tensor([[0.5, 3.0]]), T=1.0)  # (1/8 + 5/2) / 2
    tensor(1.3125)
    """

    formula: ClassVar[str] = "mean smoothL1(f_s - f_t): d²/(2 beta) for |d| < beta, else |d| - beta/2"
    source: ClassVar[str] = "Fast R-CNN, arXiv 1504.08083"
    example: ClassVar[str] = "--loss smooth_l1:of=embedding"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"values"})
    default_beta: ClassVar[float] = 0.0
    standardizes: ClassVar[bool] = False
    least_classes: ClassVar[int] = 1
    zero_for_perfect: ClassVar[bool] = True

    beta: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.beta < math.inf:
            raise UsageError(f"loss 'smooth_l1': beta={self.beta:g} must be above 0; loss 'mse' has squares alone")

    @full_precision
    def __call__(
        self, student: torch.Tensor, teacher: torch.Tensor, T: float, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Values (B, C) of student and teacher → a scalar. ``T`` and ``labels`` are ignored."""
        return F.smooth_l1_loss(student, teacher.to(student.dtype), beta=self.beta)
