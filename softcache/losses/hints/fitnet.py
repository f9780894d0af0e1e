"""``fitnet``: the student's layer, projected by a regressor, imitates the teacher's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import nn

from softcache.losses._precision import full_precision
from softcache.losses.hints._hint_loss import HintLoss
from softcache.losses.hints._regressor import regressor
from softcache.losses.hints._seeded import seeded
from softcache.losses.hints._shapes import Shape, check_shape


@dataclass(frozen=True)
class FitNet(HintLoss):
    """``mean (r(f_s) - f_t)²`` over batch, channels and positions; r is a regressor that is trained with the student.

    It is trained jointly with the other losses (weight 100) or, as in the paper, in two stages: first this loss alone,
    up to the guided layer, then the loss on logits from the weights that were found.
    Source: arXiv 1412.6550, equation 3.

    >>> module = FitNet().build((1,), (1,), row_count=2, classes=2, seed=0)
    >>> loss = module(torch.tensor([[0.0], [1000.0]]), torch.full((2, 1), 2.0))
    >>> round(loss.item(), 3)  # the regressor ends in batch norm, so it gives -1 and 1: (9 + 1) / 2
    5.0
    """

    formula: ClassVar[str] = "mean (r(f_s) - f_t)², r a trained regressor"
    source: ClassVar[str] = "FitNets, arXiv 1412.6550"
    example: ClassVar[str] = "--hint fitnet:teacher=layer3,student=layer3 --alpha 0 --beta 1"
    default_weight: ClassVar[str] = "100"
    of_lengths: ClassVar[Literal["places", "rows"] | None] = "places"

    def build(
        self, student_shape: Shape, teacher_shape: Shape, *, row_count: int, classes: int, seed: int
    ) -> nn.Module:
        for shape in (student_shape, teacher_shape):
            check_shape(shape, "hint loss 'fitnet'")
        with seeded(seed):
            return _FitNet(regressor(student_shape, teacher_shape))


class _FitNet(nn.Module):
    def __init__(self, regressor: nn.Module) -> None:
        super().__init__()
        self.regressor = regressor

    @full_precision
    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(self.regressor(student), teacher)
