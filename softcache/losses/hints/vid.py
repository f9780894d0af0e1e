"""``vid``: variational information distillation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from softcache.errors import UsageError
from softcache.losses._precision import full_precision
from softcache.losses.hints._seeded import seeded
from softcache.losses.hints._shapes import Shape, as_map, check_shape, map_shape, same_size

SMALLEST = 1e-5


@dataclass(frozen=True)
class VID:
    """``½ mean [(μ(f_s) - f_t)² / σ² + log σ²]``, mean over batch, channels and places.

    μ: three 1×1 convolutions with ReLUs between; σ²: one variance a channel, softplus of a parameter,
    ``initial`` at first. Both are trained with the student: the module's parameters must be in the optimizer.
    The larger map is average-pooled. Can be negative. Source: arXiv 1904.05835.
    """

    formula: ClassVar[str] = "½ mean [(μ(f_s) - f_t)²/σ² + log σ²], μ and σ trained"
    source: ClassVar[str] = "VID, arXiv 1904.05835"
    needs: ClassVar[str] = "maps"
    default_weight: ClassVar[str] = "1"

    initial: float = 5.0

    def __post_init__(self) -> None:
        if not SMALLEST < self.initial < math.inf:
            raise UsageError(f"hint loss 'vid': initial={self.initial:g} is a variance: it must be above 0")

    def build(self, student_shape: Shape, teacher_shape: Shape, *, rows: int, classes: int, seed: int) -> nn.Module:
        for shape in (student_shape, teacher_shape):
            check_shape(shape, "hint loss 'vid'")
        with seeded(seed):
            return _VID(map_shape(student_shape)[0], map_shape(teacher_shape)[0], self.initial)


class _VID(nn.Module):
    def __init__(self, channels: int, wanted: int, initial: float) -> None:
        super().__init__()
        self.mean = nn.Sequential(
            nn.Conv2d(channels, wanted, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(wanted, wanted, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(wanted, wanted, 1, bias=False),
        )
        above = initial - SMALLEST
        start = above + math.log(-math.expm1(-above))  # softplus' inverse, written so that nothing overflows
        self.scale = nn.Parameter(torch.full((wanted,), start))

    @full_precision
    def forward(
        self,
        student: torch.Tensor,
        teacher: torch.Tensor,
        *,
        indices: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        s, t = same_size(as_map(student), as_map(teacher))
        variance = (F.softplus(self.scale) + SMALLEST)[:, None, None]
        return 0.5 * ((self.mean(s) - t).square() / variance + variance.log()).mean()
