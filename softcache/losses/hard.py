"""``hard``: cross-entropy with the class that the teacher would answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from softcache.losses._precision import full_precision


@dataclass(frozen=True)
class Hard:
    """``-log softmax(z_s)[argmax z_t]``, mean over the batch; no temperature.

    Source: hard-label distillation of DeiT, arXiv 2012.12877, equation 3.
    """

    formula: ClassVar[str] = "-log softmax(z_s)[argmax z_t]"
    source: ClassVar[str] = "DeiT, arXiv 2012.12877"
    needs_labels: ClassVar[bool] = False
    through_softmax: ClassVar[bool] = True
    zero_for_perfect: ClassVar[bool] = False
    default_T: ClassVar[float | None] = None
    default_weight: ClassVar[str] = "1"

    @full_precision
    def __call__(
        self, student: torch.Tensor, teacher: torch.Tensor, T: float, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits (B, C) twice → scalar; ``T`` and ``labels`` play no part."""
        return F.cross_entropy(student, teacher.argmax(1))
