"""``mse``: the mean squared difference of the outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from softcache.losses._contract import Kind
from softcache.losses._loss import Loss
from softcache.losses._precision import full_precision


@dataclass(frozen=True)
class MSE(Loss):
    """``mean_bc (z_s - z_t)²`` of logits or of values; it has no temperature.

    For logits with mean 0, the gradient of ``kl`` at a high temperature tends to half the gradient of this loss.
    Source: arXiv 1312.6184; arXiv 1503.02531, section 2.1.

    >>> MSE()(torch.zeros(1, 2), torch.tensor([[1.0, 3.0]]), T=1.0)
    tensor(5.)
    """

    formula: ClassVar[str] = "mean (z_s - z_t)²"
    source: ClassVar[str] = "Ba & Caruana 2014, arXiv 1312.6184"
    example: ClassVar[str] = "--loss mse"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"classes", "binary", "values"})
    default_beta: ClassVar[float] = 0.0
    least_classes: ClassVar[int] = 1
    zero_for_perfect: ClassVar[bool] = True

    @full_precision
    def __call__(
        self, student: torch.Tensor, teacher: torch.Tensor, T: float, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits or values (B, C) of student and teacher → a scalar. ``T`` and ``labels`` are ignored."""
        return F.mse_loss(student, teacher.to(student.dtype))
