"""``nst``: neuron selectivity transfer, the channels of a map as samples of a distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from softcache.losses._precision import full_precision
from softcache.losses.hints._shapes import Shape, as_map, check_shape, same_size


@dataclass(frozen=True)
class NST:
    """Squared maximum mean discrepancy between the channels of two maps, kernel ``(x · y)²``, batch mean.

    A channel is its values at all places, L2-normalized; the larger map is average-pooled; channels may
    differ and nothing is trained. Source: arXiv 1707.01219.
    """

    formula: ClassVar[str] = "mean k(t,t) + mean k(s,s) - 2 mean k(s,t), k(x,y) = (x̂·ŷ)² over channels"
    source: ClassVar[str] = "NST, arXiv 1707.01219"
    needs: ClassVar[str] = "maps"
    default_weight: ClassVar[str] = "50"
    zero_for_perfect: ClassVar[bool] = True

    def build(self, student_shape: Shape, teacher_shape: Shape, *, rows: int, classes: int, seed: int) -> nn.Module:
        for shape in (student_shape, teacher_shape):
            check_shape(shape, "hint loss 'nst'", spatial=True)
        return _NST()


class _NST(nn.Module):
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
        s, t = F.normalize(s.flatten(2), dim=2), F.normalize(t.flatten(2), dim=2)  # (B, C, P)
        # Σ_ij (x_i·y_j)² = <XᵀX, YᵀY>, so with few places the P×P products say all; with few channels C×C do
        if s.shape[2] ** 2 <= s.shape[1] * t.shape[1]:
            difference = s.mT @ s / s.shape[1] - t.mT @ t / t.shape[1]
            return difference.square().sum((1, 2)).mean()
        return _kernel(t, t) + _kernel(s, s) - 2 * _kernel(s, t)


def _kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a @ b.mT).square().mean()
