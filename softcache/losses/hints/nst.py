"""``nst``: neuron selectivity transfer, which takes the channels of a map as samples of a distribution."""

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
class NST(HintLoss):
    """Squared maximum mean discrepancy between the channels of two maps, kernel ``(x · y)²``, mean over the batch.

    A channel is the vector of its values at all positions, L2-normalized. The larger map is average-pooled. The numbers
    of channels may differ, and nothing is trained. Source: arXiv 1707.01219.

    >>> module = NST().build((1, 1, 2), (1, 1, 2), row_count=2, classes=2, seed=0)
    >>> left, right = torch.tensor([[[[3.0, 0.0]]]]), torch.tensor([[[[0.0, 7.0]]]])
    >>> module(left, right)  # k(s, s) + k(t, t) - 2 k(s, t) = 1 + 1 - 0
    tensor(2.)
    """

    formula: ClassVar[str] = "mean k(t,t) + mean k(s,s) - 2 mean k(s,t), k(x,y) = (x̂·ŷ)² over channels"
    source: ClassVar[str] = "NST, arXiv 1707.01219"
    example: ClassVar[str] = "--hint nst:teacher=layer3,student=layer3 --alpha 0 --beta 1"
    needs: ClassVar[frozenset[Need]] = frozenset({"maps"})
    default_weight: ClassVar[str] = "50"
    zero_for_perfect: ClassVar[bool] = True

    def build(
        self, student_shape: Shape, teacher_shape: Shape, *, row_count: int, classes: int, seed: int
    ) -> nn.Module:
        for shape in (student_shape, teacher_shape):
            check_shape(shape, "hint loss 'nst'", spatial=True)
        return _NST()


class _NST(nn.Module):
    @full_precision
    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        s, t = same_size(as_map(student), as_map(teacher))
        s, t = F.normalize(s.flatten(2), dim=2), F.normalize(t.flatten(2), dim=2)  # (B, C, P)
        # Σ_ij (x_i·y_j)² = <XᵀX, YᵀY>: the P×P products are cheaper with few positions, C×C with few channels.
        if s.shape[2] ** 2 <= s.shape[1] * t.shape[1]:
            difference = s.mT @ s / s.shape[1] - t.mT @ t / t.shape[1]
            return difference.square().sum((1, 2)).mean()
        return _kernel(t, t) + _kernel(s, s) - 2 * _kernel(s, t)


def _kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a @ b.mT).square().mean()
