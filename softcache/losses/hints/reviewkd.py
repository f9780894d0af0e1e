"""``reviewkd``: each layer of the teacher is learned from all deeper layers of the student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from softcache.errors import UsageError
from softcache.losses._precision import full_precision
from softcache.losses.hints._regressor import BatchNorm
from softcache.losses.hints._seeded import seeded
from softcache.losses.hints._shapes import Shape, as_map, check_shape, map_shape, pool


@dataclass(frozen=True)
class ReviewKD:
    """``Σ_layers HCL(r_l, f_t,l)``; r_l: the student's layers from l on, fused by attention, deep to shallow.

    HCL: mean squared difference of the maps and of their average-pooled 4×4, 2×2 and 1×1 versions, weighted
    1, ½, ¼, ⅛ and divided by the weights' sum. Layers from shallow to deep, the same number on both sides:
    ``reviewkd:teacher=layer1/layer2/layer3/fc:in,student=layer1/layer2/layer3/fc:in``; vectors count as 1×1
    maps. The paper takes maps before their last activation. The fusion has ``channels`` channels, at most the
    deepest student layer's. The paper's code warms its weight up: ``weight=0:5:warmup=20``. Source: arXiv
    2104.09044.
    """

    formula: ClassVar[str] = "Σ_l HCL(fused f_s,l.., f_t,l), pyramid of mean squares at 1, 4×4, 2×2, 1×1"
    source: ClassVar[str] = "ReviewKD, arXiv 2104.09044"
    needs: ClassVar[str] = "maps of several layers + vector"
    default_weight: ClassVar[str] = "5"
    several: ClassVar[bool] = True

    channels: int = 512

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise UsageError(f"hint loss 'reviewkd': channels={self.channels} is a width: it must be 1 or more")

    def build(
        self,
        student_shapes: Sequence[Shape],
        teacher_shapes: Sequence[Shape],
        *,
        rows: int,
        classes: int,
        seed: int,
    ) -> nn.Module:
        for shape in (*student_shapes, *teacher_shapes):
            check_shape(shape, "hint loss 'reviewkd'")
        with seeded(seed):
            return _ReviewKD(
                [map_shape(s) for s in student_shapes], [map_shape(t) for t in teacher_shapes], self.channels
            )


class _ReviewKD(nn.Module):
    def __init__(self, student: list[tuple[int, int, int]], teacher: list[tuple[int, int, int]], channels: int) -> None:
        super().__init__()
        middle = min(channels, student[-1][0])
        deepest = len(student) - 1
        self.fusions = nn.ModuleList(
            _Fusion(s[0], middle, t[0], fuse=layer < deepest)
            for layer, (s, t) in enumerate(zip(student, teacher, strict=True))
        )

    @full_precision
    def forward(
        self,
        student: Sequence[torch.Tensor],
        teacher: Sequence[torch.Tensor],
        *,
        indices: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The activations of each layer, shallow to deep → scalar."""
        total = torch.zeros((), device=student[0].device)
        carried: torch.Tensor | None = None
        for layer in reversed(range(len(self.fusions))):
            target = as_map(teacher[layer])
            out, carried = self.fusions[layer](as_map(student[layer]), carried, target.shape[2:])
            total = total + hierarchical(out, target)
        return total


class _Fusion(nn.Module):
    """A student layer with what deeper ones handed on → (this layer's imitation, what it hands on)."""

    def __init__(self, channels: int, middle: int, wanted: int, *, fuse: bool) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(channels, middle, 1, bias=False), BatchNorm(middle))
        self.expand = nn.Sequential(nn.Conv2d(middle, wanted, 3, padding=1, bias=False), BatchNorm(wanted))
        for convolution in (self.reduce[0], self.expand[0]):
            nn.init.kaiming_uniform_(convolution.weight, a=1)  # type: ignore[arg-type]
        self.attention = nn.Conv2d(2 * middle, 2, 1) if fuse else None

    def forward(
        self, x: torch.Tensor, carried: torch.Tensor | None, size: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.reduce(x)
        if self.attention is not None and carried is not None:
            carried = F.interpolate(carried, x.shape[2:], mode="nearest")
            share = self.attention(torch.cat([x, carried], dim=1)).sigmoid()  # (B, 2, H, W)
            x = x * share[:, :1] + carried * share[:, 1:]
        if x.shape[2:] != size:
            x = F.interpolate(x, tuple(size), mode="nearest")
        return self.expand(x), x


def hierarchical(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The hierarchical context loss of two (B, C, H, W), arXiv 2104.09044, section 3.4."""
    total, weight, weights = F.mse_loss(a, b), 1.0, 1.0
    for size in (4, 2, 1):
        if size >= a.shape[2]:
            continue
        weight /= 2
        weights += weight
        width = min(size, a.shape[3])
        total = total + weight * F.mse_loss(pool(a, size, width), pool(b, size, width))
    return total / weights
