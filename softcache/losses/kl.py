"""``kl``: the distillation loss of Hinton, Vinyals and Dean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from softcache.losses._precision import full_precision


@dataclass(frozen=True)
class KL:
    """``T² KL(softmax(z_t/T) ‖ softmax(z_s/T))``, summed over classes, mean over the batch.

    T² keeps the gradient of one size over T, so that the weight against the labels' term holds for every T.
    Source: arXiv 1503.02531, section 2.
    """

    formula: ClassVar[str] = "T² KL(softmax(z_t/T) ‖ softmax(z_s/T))"
    source: ClassVar[str] = "Hinton 2015, arXiv 1503.02531"
    needs_labels: ClassVar[bool] = False
    through_softmax: ClassVar[bool] = True
    zero_for_perfect: ClassVar[bool] = True
    default_T: ClassVar[float | None] = 4.0
    default_weight: ClassVar[str] = "1"
    standardized_weight: ClassVar[str] = "9"

    @full_precision
    def __call__(
        self, student: torch.Tensor, teacher: torch.Tensor, T: float, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits (B, C) twice → scalar; ``labels`` play no part."""
        log_s = F.log_softmax(student / T, dim=1)
        log_t = F.log_softmax(teacher / T, dim=1)
        return T * T * F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)
