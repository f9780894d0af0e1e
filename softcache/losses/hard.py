"""``hard``: cross-entropy with the class that the teacher predicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from softcache.losses._loss import Loss
from softcache.losses._precision import full_precision


@dataclass(frozen=True)
class Hard(Loss):
    """``-log softmax(z_s)[argmax z_t]``, averaged over the batch; it has no temperature.

    Source: hard-label distillation of DeiT, arXiv 2012.12877, equation 3.

    >>> Hard()(torch.zeros(1, 4), torch.tensor([[0.0, 5.0, 1.0, 2.0]]), T=1.0)  # log 4
    tensor(1.3863)
    """

    formula: ClassVar[str] = "-log softmax(z_s)[argmax z_t]"
    source: ClassVar[str] = "DeiT, arXiv 2012.12877"
    example: ClassVar[str] = "--loss hard"
    default_alpha: ClassVar[float] = 0.5
    default_beta: ClassVar[float] = 0.5
    standardizes: ClassVar[bool] = False
    through_softmax: ClassVar[bool] = True

    @full_precision
    def __call__(
        self, student: torch.Tensor, teacher: torch.Tensor, T: float, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits (B, C) of student and teacher → a scalar. ``T`` and ``labels`` are ignored."""
        return F.cross_entropy(student, teacher.argmax(1))
