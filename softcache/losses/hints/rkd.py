"""``rkd``: relations between samples, as distances and angles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from softcache.losses import rkd
from softcache.losses._contract import Need, Scope
from softcache.losses.hints._hint_loss import HintLoss
from softcache.losses.hints._of_vectors import OfVectors
from softcache.losses.hints._shapes import Shape, check_shape


@dataclass(frozen=True)
class RKD(HintLoss):
    """``rkd`` of the teacher's outputs (``softcache.losses.rkd``), of activations.

    ``distance · smoothL1(d_s, d_t) + angle · smoothL1(cos_s, cos_t)``, means over B² pairs and B³ triples; d: distances
    over their mean, cos: the angles' cosines. Maps and tokens are averaged over their positions, and nothing is
    trained. Source: arXiv 1904.05068.

    >>> import torch
    >>> module = RKD().build((3,), (3,), row_count=2, classes=2, seed=0)
    >>> student = torch.eye(3, dtype=torch.float64)
    >>> round(module(student, 3 * student + 1).item(), 9)
    0.0
    """

    formula: ClassVar[str] = "distance smoothL1(d_s, d_t) + angle smoothL1(cos_s, cos_t), pairs and triples"
    source: ClassVar[str] = "RKD, arXiv 1904.05068"
    example: ClassVar[str] = "--hint rkd:teacher=fc:in,student=fc:in --alpha 0 --beta 1"
    of_lengths: ClassVar[Literal["places", "rows"] | None] = "rows"
    scope: ClassVar[Scope] = "batch"
    needs: ClassVar[frozenset[Need]] = frozenset({"vectors"})
    zero_for_perfect: ClassVar[bool] = True

    distance: float = 25.0
    angle: float = 50.0

    def build(
        self, student_shape: Shape, teacher_shape: Shape, *, row_count: int, classes: int, seed: int
    ) -> nn.Module:
        for shape in (student_shape, teacher_shape):
            check_shape(shape, "hint loss 'rkd'")
        return OfVectors(rkd.RKD(self.distance, self.angle))
