"""``mse``: the squared difference of the logits themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from softcache.losses._precision import full_precision


@dataclass(frozen=True)
class MSE:
    """``mean_bc (z_s - z_t)²``; no temperature.

    On logits without mean, the gradient of ``kl`` at a high temperature tends to half of this one's.
    Source: arXiv 1312.6184; arXiv 1503.02531, section 2.1.
    """

    formula: ClassVar[str] = "mean (z_s - z_t)²"
    source: ClassVar[str] = "Ba & Caruana 2014, arXiv 1312.6184"
    needs_labels: ClassVar[bool] = False
    through_softmax: ClassVar[bool] = False
    zero_for_perfect: ClassVar[bool] = True
    default_T: ClassVar[float | None] = None
    default_weight: ClassVar[str] = "1"

    @full_precision
    def __call__(
        self, student: torch.Tensor, teacher: torch.Tensor, T: float, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits (B, C) twice → scalar; ``T`` and ``labels`` play no part."""
        return F.mse_loss(student, teacher.to(student.dtype))
