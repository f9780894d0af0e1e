"""``at``: attention transfer, which compares where in a map the energy is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from softcache.losses._contract import Need
from softcache.losses._precision import full_precision
from softcache.losses.hints._hint_loss import HintLoss
from softcache.losses.hints._shapes import Shape, as_map, check_shape, same_size


@dataclass(frozen=True)
class AT(HintLoss):
    """``mean (a(f_s) - a(f_t))²``, ``a(f) = vec(mean_c f²) / ‖·‖₂``; the larger map is average-pooled.

    The mean is over the batch and over positions, as in the paper's code; its text takes the norm instead of the mean
    square. The numbers of channels may differ, and nothing is trained. Source: arXiv 1612.03928, equation 2.

    >>> module = AT().build((1, 1, 2), (1, 1, 2), row_count=2, classes=2, seed=0)
    >>> left, right = torch.tensor([[[[3.0, 0.0]]]]), torch.tensor([[[[0.0, 7.0]]]])
    >>> module(left, right)  # a(f_s) = (1, 0), a(f_t) = (0, 1)
    tensor(1.)
    """

    formula: ClassVar[str] = "mean (a(f_s) - a(f_t))², a(f) = vec(mean_c f²) / ‖·‖"
    source: ClassVar[str] = "Attention transfer, arXiv 1612.03928"
    example: ClassVar[str] = "--hint at:teacher=layer3,student=layer3 --alpha 0 --beta 1"
    needs: ClassVar[frozenset[Need]] = frozenset({"maps"})
    default_weight: ClassVar[str] = "1000"
    zero_for_perfect: ClassVar[bool] = True

    def build(
        self, student_shape: Shape, teacher_shape: Shape, *, row_count: int, classes: int, seed: int
    ) -> nn.Module:
        for shape in (student_shape, teacher_shape):
            check_shape(shape, "hint loss 'at'", spatial=True)
        return _AT()


class _AT(nn.Module):
    @full_precision
    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        s, t = same_size(as_map(student), as_map(teacher))
        return F.mse_loss(_attention(s), _attention(t))


def _attention(maps: torch.Tensor) -> torch.Tensor:
    return F.normalize(maps.square().mean(1).flatten(1), dim=1)  # (B, H W)
