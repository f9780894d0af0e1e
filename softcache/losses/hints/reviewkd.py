"""``reviewkd``: each layer of the teacher guides the student's layer and all deeper ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from softcache.errors import UsageError
from softcache.losses._contract import Need
from softcache.losses._precision import full_precision
from softcache.losses.hints._hint_loss import HintLoss
from softcache.losses.hints._regressor import BatchNorm
from softcache.losses.hints._seeded import seeded
from softcache.losses.hints._shapes import Shape, as_map, check_shape, map_shape, pool


@dataclass(frozen=True)
class ReviewKD(HintLoss):
    """``Σ_layers HCL(r_l, f_t,l)``; r_l: the student's layers from l on, fused by attention from deep to shallow.

    HCL is the mean squared difference of the maps and of their average-pooled 4×4, 2×2 and 1×1 versions, weighted 1, ½,
    ¼, ⅛ and divided by the sum of the weights. Layers are given from shallow to deep, the same number on both sides:
    ``reviewkd:teacher=layer1/layer2/layer3/fc:in,student=layer1/layer2/layer3/fc:in``. A vector counts as a 1×1 map.
    The paper takes maps before their last activation. The fusion has ``channels`` channels, or those of the deepest
    layer of the student where it has fewer. The paper's code warms the weight up over 20 of 240 epochs:
    ``weight=0:5:warmup=1/12``. Source: arXiv 2104.09044.

    >>> shapes = [(3, 8, 8), (4,)]
    >>> module = ReviewKD().build(shapes, shapes, row_count=2, classes=2, seed=0)
    >>> student, teacher = ([torch.randn(2, *shape) for shape in shapes] for _ in range(2))
    >>> module(student, teacher).shape
    torch.Size([])
    """

    formula: ClassVar[str] = "Σ_l HCL(fused f_s,l.., f_t,l), pyramid of mean squares at 1, 4×4, 2×2, 1×1"
    source: ClassVar[str] = "ReviewKD, arXiv 2104.09044"
    example: ClassVar[str] = (
        "--hint reviewkd:teacher=layer1/layer2/layer3/fc:in,student=layer1/layer2/layer3/fc:in,weight=0:5:warmup=1/12 "
        "--alpha 0 --beta 1"
    )
    needs: ClassVar[frozenset[Need]] = frozenset({"maps"})
    default_weight: ClassVar[str] = "5"
    several: ClassVar[bool] = True

    channels: int = 512

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise UsageError(f"hint loss 'reviewkd': channels={self.channels} must be 1 or more")

    def build(
        self,
        student_shapes: Sequence[Shape],
        teacher_shapes: Sequence[Shape],
        *,
        row_count: int,
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
    ) -> torch.Tensor:
        """Activations of each layer, from shallow to deep → a scalar."""
        total = torch.zeros((), device=student[0].device)
        carried: torch.Tensor | None = None
        for layer in reversed(range(len(self.fusions))):
            target = as_map(teacher[layer])
            out, carried = self.fusions[layer](as_map(student[layer]), carried, target.shape[2:])
            total = total + hierarchical(out, target)
        return total


class _Fusion(nn.Module):
    """Fuses a layer of the student with the result of deeper layers.

    Returns this layer's imitation of the teacher's map, and the result for the next shallower layer.
    """

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
    """The hierarchical context loss of two (B, C, H, W), arXiv 2104.09044, section 3.4.

    >>> hierarchical(torch.zeros(1, 2, 8, 8), torch.full((1, 2, 8, 8), 2.0))  # 2² at every size
    tensor(4.)
    """
    total, weight, weights = F.mse_loss(a, b), 1.0, 1.0
    for size in (4, 2, 1):
        if size >= a.shape[2]:
            continue
        weight /= 2
        weights += weight
        width = min(size, a.shape[3])
        total = total + weight * F.mse_loss(pool(a, size, width), pool(b, size, width))
    return total / weights
