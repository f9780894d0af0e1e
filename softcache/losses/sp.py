"""``sp``: which samples of a batch are similar to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from softcache.losses._contract import Kind, Need, Scope
from softcache.losses._loss import Loss
from softcache.losses._precision import full_precision


@dataclass(frozen=True)
class SP(Loss):
    """``‖G_s - G_t‖²_F / B²``, ``G = F Fᵀ`` with L2-normalized rows. Source: arXiv 1907.09682.

    >>> SP()(torch.eye(2), torch.ones(2, 3), T=1.0)  # 1 - 1/√2
    tensor(0.2929)
    """

    formula: ClassVar[str] = "‖G_s - G_t‖²_F / B², G = F Fᵀ with rows L2-normalized"
    source: ClassVar[str] = "Similarity preserving, arXiv 1907.09682"
    example: ClassVar[str] = "--loss sp:of=embedding"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"values"})
    scope: ClassVar[Scope] = "batch"
    needs: ClassVar[frozenset[Need]] = frozenset({"vectors"})
    default_beta: ClassVar[float] = 0.0
    default_weight: ClassVar[str] = "3000"
    standardizes: ClassVar[bool] = False
    least_classes: ClassVar[int] = 1
    zero_for_perfect: ClassVar[bool] = True

    @full_precision
    def __call__(
        self, student: torch.Tensor, teacher: torch.Tensor, T: float, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Vectors (B, D) of student and teacher, whose D may differ → a scalar. ``T`` and ``labels`` are ignored."""
        return F.mse_loss(_similarity(student), _similarity(teacher))


def _similarity(x: torch.Tensor) -> torch.Tensor:
    return F.normalize(x @ x.T, dim=1)  # (B, B)
