"""``ce``: cross-entropy with the soft targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from softcache.losses._precision import full_precision


@dataclass(frozen=True)
class CE:
    """``-T² Σ_c softmax(z_t/T) log softmax(z_s/T)``, mean over the batch.

    It is ``kl`` plus the entropy of the soft targets: another value, the same gradient.
    Source: arXiv 1503.02531, section 2.
    """

    formula: ClassVar[str] = "-T² Σ softmax(z_t/T) log softmax(z_s/T)"
    source: ClassVar[str] = "Hinton 2015, arXiv 1503.02531"
    needs_labels: ClassVar[bool] = False
    through_softmax: ClassVar[bool] = True
    zero_for_perfect: ClassVar[bool] = False
    default_T: ClassVar[float | None] = 4.0
    default_weight: ClassVar[str] = "1"
    standardized_weight: ClassVar[str] = "9"

    @full_precision
    def __call__(
        self, student: torch.Tensor, teacher: torch.Tensor, T: float, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits (B, C) twice → scalar; ``labels`` play no part."""
        targets = F.softmax(teacher / T, dim=1)
        return -T * T * (targets * F.log_softmax(student / T, dim=1)).sum(1).mean()
