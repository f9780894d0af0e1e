"""``at``: attention transfer, where in the map the energy is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from softcache.losses._precision import full_precision
from softcache.losses.hints._shapes import Shape, as_map, check_shape, same_size


@dataclass(frozen=True)
class AT:
    """``mean (a(f_s) - a(f_t))²``, ``a(f) = vec(mean_c f²) / ‖·‖₂``; the larger map is average-pooled.

    Mean over batch and places, as the paper's code has it (its text takes the norm instead of the mean
    square). Channels may differ; nothing is trained. Source: arXiv 1612.03928, equation 2.
    """

    formula: ClassVar[str] = "mean (a(f_s) - a(f_t))², a(f) = vec(mean_c f²) / ‖·‖"
    source: ClassVar[str] = "Attention transfer, arXiv 1612.03928"
    needs: ClassVar[str] = "maps"
    default_weight: ClassVar[str] = "1000"
    zero_for_perfect: ClassVar[bool] = True

    def build(self, student_shape: Shape, teacher_shape: Shape, *, rows: int, classes: int, seed: int) -> nn.Module:
        for shape in (student_shape, teacher_shape):
            check_shape(shape, "hint loss 'at'", spatial=True)
        return _AT()


class _AT(nn.Module):
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
        return F.mse_loss(_attention(s), _attention(t))


def _attention(maps: torch.Tensor) -> torch.Tensor:
    return F.normalize(maps.square().mean(1).flatten(1), dim=1)  # (B, H W)
