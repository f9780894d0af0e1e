"""``fitnet``: the student's layer, projected, imitates the teacher's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from softcache.losses._precision import full_precision
from softcache.losses.hints._regressor import regressor
from softcache.losses.hints._seeded import seeded
from softcache.losses.hints._shapes import Shape, check_shape


@dataclass(frozen=True)
class FitNet:
    """``mean (r(f_s) - f_t)²`` over batch, channels and places; r: a regressor trained with the student.

    Jointly with the other terms (weight 100), or as the paper has it in two stages: first this alone up to
    the guided layer, then the logits' loss from those weights. Source: arXiv 1412.6550, equation 3.
    """

    formula: ClassVar[str] = "mean (r(f_s) - f_t)², r a trained regressor"
    source: ClassVar[str] = "FitNets, arXiv 1412.6550"
    needs: ClassVar[str] = "any"
    default_weight: ClassVar[str] = "100"

    def build(self, student_shape: Shape, teacher_shape: Shape, *, rows: int, classes: int, seed: int) -> nn.Module:
        for shape in (student_shape, teacher_shape):
            check_shape(shape, "hint loss 'fitnet'")
        with seeded(seed):
            return _FitNet(regressor(student_shape, teacher_shape))


class _FitNet(nn.Module):
    def __init__(self, regressor: nn.Module) -> None:
        super().__init__()
        self.regressor = regressor

    @full_precision
    def forward(
        self,
        student: torch.Tensor,
        teacher: torch.Tensor,
        *,
        indices: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return F.mse_loss(self.regressor(student), teacher)
