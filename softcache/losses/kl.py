"""``kl``: the distillation loss of Hinton, Vinyals and Dean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from softcache.losses._loss import Loss
from softcache.losses._precision import full_precision


@dataclass(frozen=True)
class KL(Loss):
    """``T² KL(softmax(z_t/T) ‖ softmax(z_s/T))``, summed over classes, averaged over the batch.

    The factor T² keeps the size of the gradient nearly the same for every T, so that the weight of this loss beside
    the hard-label loss need not change with T. Source: arXiv 1503.02531, section 2.

    >>> teacher = torch.tensor([[3.0, 1.0]]).log()  # probabilities 3/4 and 1/4
    >>> KL()(torch.zeros(1, 2), teacher, T=1.0)  # log 2 minus the teacher's entropy
    tensor(0.1308)
    """

    formula: ClassVar[str] = "T² KL(softmax(z_t/T) ‖ softmax(z_s/T))"
    source: ClassVar[str] = "Hinton 2015, arXiv 1503.02531"
    example: ClassVar[str] = "--loss kl"
    default_alpha: ClassVar[float] = 0.9
    default_beta: ClassVar[float] = 0.1
    through_softmax: ClassVar[bool] = True
    zero_for_perfect: ClassVar[bool] = True
    default_T: ClassVar[float | None] = 4.0
    standardized_weight: ClassVar[str] = "9"

    @full_precision
    def __call__(
        self, student: torch.Tensor, teacher: torch.Tensor, T: float, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits (B, C) of student and teacher → a scalar. ``labels`` are ignored."""
        log_s = F.log_softmax(student / T, dim=1)
        log_t = F.log_softmax(teacher / T, dim=1)
        return T * T * F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)
