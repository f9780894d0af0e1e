"""``vid``: variational information distillation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import nn

from softcache.errors import UsageError
from softcache.losses._contract import Need
from softcache.losses._precision import full_precision
from softcache.losses.hints._hint_loss import HintLoss
from softcache.losses.hints._seeded import seeded
from softcache.losses.hints._shapes import Shape, as_map, check_shape, map_shape, same_size

SMALLEST = 1e-5


@dataclass(frozen=True)
class VID(HintLoss):
    """``½ mean [(μ(f_s) - f_t)² / σ² + log σ²]``, averaged over batch, channels and positions.

    μ: three 1×1 convolutions with ReLUs in between. σ²: one variance for each channel, the softplus of a parameter, at
    first ``initial``. Both are trained with the student: the module's parameters must be in the optimizer. The larger
    map is average-pooled. The loss can be negative. Source: arXiv 1904.05835.

    >>> module = VID(initial=5.0).build((3, 2, 2), (4, 2, 2), row_count=2, classes=2, seed=0)
    >>> round(module(torch.zeros(2, 3, 2, 2), torch.zeros(2, 4, 2, 2)).item(), 4)  # μ(0) = 0: log(5) / 2
    0.8047
    """

    formula: ClassVar[str] = "½ mean [(μ(f_s) - f_t)²/σ² + log σ²], μ and σ trained"
    source: ClassVar[str] = "VID, arXiv 1904.05835"
    example: ClassVar[str] = "--hint vid:teacher=layer3,student=layer3 --alpha 0 --beta 1"
    of_lengths: ClassVar[Literal["places", "rows"] | None] = "places"
    needs: ClassVar[frozenset[Need]] = frozenset({"maps"})

    initial: float = 5.0

    def __post_init__(self) -> None:
        if not SMALLEST < self.initial < math.inf:
            raise UsageError(f"hint loss 'vid': initial={self.initial:g} is a variance and must be above 0")

    def build(
        self, student_shape: Shape, teacher_shape: Shape, *, row_count: int, classes: int, seed: int
    ) -> nn.Module:
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
        start = above + math.log(-math.expm1(-above))  # the inverse of softplus, in a form that doesn't overflow
        self.scale = nn.Parameter(torch.full((wanted,), start))

    @full_precision
    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        s, t = same_size(as_map(student), as_map(teacher))
        variance = (F.softplus(self.scale) + SMALLEST)[:, None, None]
        return 0.5 * ((self.mean(s) - t).square() / variance + variance.log()).mean()
