"""``wsld``: soft targets, weighted by how much a sample still has to learn from its label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from softcache.losses._contract import Need
from softcache.losses._labelled import at_label, labelled_mean
from softcache.losses._loss import Loss
from softcache.losses._precision import full_precision


@dataclass(frozen=True)
class WSLD(Loss):
    """``w T² KL(softmax(z_t/T) ‖ softmax(z_s/T))`` of each sample, ``w = 1 - exp(-CE_s / max(CE_t, eps))``.

    CE_s and CE_t are the cross-entropies with the label at T 1. The weight w has no gradient. The loss is averaged over
    labelled samples. The paper uses weight 2.5 beside the hard-label loss with weight 1, at T 2.
    Source: arXiv 2102.00650.

    >>> teacher = torch.tensor([[1.0, 3.0]]).log()  # CE_t = log 4, CE_s = log 2: w = 1 - exp(-1/2); KL = 0.1308
    >>> WSLD()(torch.zeros(1, 2), teacher, T=1.0, labels=torch.tensor([0]))
    tensor(0.0515)
    """

    formula: ClassVar[str] = "(1 - exp(-CE_s / max(CE_t, eps))) T² KL(softmax(z_t/T) ‖ softmax(z_s/T))"
    source: ClassVar[str] = "WSLD, arXiv 2102.00650"
    example: ClassVar[str] = "--loss wsld"
    needs: ClassVar[frozenset[Need]] = frozenset({"labels"})
    zero_for_perfect: ClassVar[bool] = True
    default_T: ClassVar[float | None] = 2.0
    default_weight: ClassVar[str] = "2.5"

    eps: float = 1e-7

    @full_precision
    def __call__(
        self, student: torch.Tensor, teacher: torch.Tensor, T: float, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits (B, C) of student and teacher, and labels (B,) int64, -1 for none → a scalar."""
        assert labels is not None
        with torch.no_grad():
            ce_s = -at_label(F.log_softmax(student, dim=1), labels)
            ce_t = -at_label(F.log_softmax(teacher, dim=1), labels)
            weight = -torch.expm1(-ce_s / ce_t.clamp_min(self.eps))
        log_s, log_t = F.log_softmax(student / T, dim=1), F.log_softmax(teacher / T, dim=1)
        kl = F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(1)
        return T * T * labelled_mean(weight * kl, labels)
