"""``sp``: which samples of a batch are similar to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from softcache.losses import sp
from softcache.losses._contract import Scope
from softcache.losses._precision import full_precision
from softcache.losses.hints._hint_loss import HintLoss
from softcache.losses.hints._shapes import Shape, check_shape


@dataclass(frozen=True)
class SP(HintLoss):
    """``sp`` of the teacher's outputs (``softcache.losses.sp``), of flattened activations.

    ``‖G_s - G_t‖²_F / B²``, ``G = F Fᵀ`` with L2-normalized rows. The shapes of student and teacher may differ, and
    nothing is trained. Source: arXiv 1907.09682.

    >>> module = SP().build((2,), (3,), row_count=2, classes=2, seed=0)
    >>> module(torch.eye(2), torch.ones(2, 3))  # 1 - 1/√2
    tensor(0.2929)
    """

    formula: ClassVar[str] = "‖G_s - G_t‖²_F / B², G = F Fᵀ with rows L2-normalized"
    source: ClassVar[str] = "Similarity preserving, arXiv 1907.09682"
    example: ClassVar[str] = "--hint sp:teacher=layer3,student=layer3 --alpha 0 --beta 1"
    scope: ClassVar[Scope] = "batch"
    default_weight: ClassVar[str] = "3000"
    of_lengths: ClassVar[Literal["places", "rows"] | None] = "rows"
    zero_for_perfect: ClassVar[bool] = True

    def build(
        self, student_shape: Shape, teacher_shape: Shape, *, row_count: int, classes: int, seed: int
    ) -> nn.Module:
        for shape in (student_shape, teacher_shape):
            check_shape(shape, "hint loss 'sp'")
        return _SP()


class _SP(nn.Module):
    @full_precision
    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        return sp.SP()(student.flatten(1), teacher.flatten(1), 1.0)
