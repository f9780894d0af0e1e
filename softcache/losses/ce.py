"""``ce``: cross-entropy with the soft targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from softcache.losses._loss import Loss
from softcache.losses._precision import full_precision


@dataclass(frozen=True)
class CE(Loss):
    """``-T² Σ_c softmax(z_t/T) log softmax(z_s/T)``, averaged over the batch.

    This is ``kl`` plus the entropy of the soft targets, times T²: the value differs, the gradient is the same.
    Source: arXiv 1503.02531, section 2.

    >>> CE()(torch.zeros(1, 2), torch.tensor([[3.0, 1.0]]), T=1.0)  # log 2 for any teacher
    tensor(0.6931)
    """

    formula: ClassVar[str] = "-T² Σ softmax(z_t/T) log softmax(z_s/T)"
    source: ClassVar[str] = "Hinton 2015, arXiv 1503.02531"
    example: ClassVar[str] = "--loss ce"
    default_alpha: ClassVar[float] = 0.9
    default_beta: ClassVar[float] = 0.1
    through_softmax: ClassVar[bool] = True
    default_T: ClassVar[float | None] = 4.0
    standardized_weight: ClassVar[str] = "9"

    @full_precision
    def __call__(
        self, student: torch.Tensor, teacher: torch.Tensor, T: float, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits (B, C) of student and teacher → a scalar. ``labels`` are ignored."""
        targets = F.softmax(teacher / T, dim=1)
        return -T * T * (targets * F.log_softmax(student / T, dim=1)).sum(1).mean()
