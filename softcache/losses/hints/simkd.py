"""``simkd``: the student predicts through the teacher's own classifier."""

from __future__ import annotations

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
from softcache.losses.hints._shapes import Shape, as_map, check_shape, map_shape, same_size
from softcache.models._through import projector


@dataclass(frozen=True)
class SimKD(HintLoss):
    """``mean (r(f_s) - f_t)²`` of the last maps; the student's logits are the teacher's classifier on mean r(f_s).

    r: 1×1, 3×3 and 1×1 convolutions with batch norm and ReLU, and the teacher's channels / ``factor`` in between. It
    ends in a ReLU, so the hint should be the output of a ReLU. The larger map is average-pooled. This loss alone trains
    the student: the paper has no term on labels or logits. Source: arXiv 2203.14001.

    The module's parameters belong to the optimizer. Wherever the student's logits are evaluated, trained or exported,
    those of ``models._through.Through`` with the module's ``projector`` and ``size`` replace the student's own.

    >>> classifier = torch.nn.Linear(4, 2)
    >>> module = SimKD().build((3, 2, 2), (4, 1, 1), row_count=2, classes=2, seed=0, teacher_classifier=classifier)
    >>> module.size
    (1, 1)
    >>> module(torch.zeros(2, 3, 2, 2), torch.full((2, 4, 1, 1), 3.0)).item()  # r(0) = 0
    9.0
    """

    formula: ClassVar[str] = "mean (r(f_s) - f_t)²; student's logits = teacher's classifier(mean r(f_s))"
    source: ClassVar[str] = "SimKD, arXiv 2203.14001"
    example: ClassVar[str] = "--hint simkd:teacher=layer3,student=layer3 --alpha 0 --beta 0"
    needs: ClassVar[frozenset[Need]] = frozenset({"maps", "teacher classifier"})
    replaces_logits: ClassVar[bool] = True

    factor: int = 2

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise UsageError(f"hint loss 'simkd': factor={self.factor} divides the channels and must be 1 or more")

    def build(
        self,
        student_shape: Shape,
        teacher_shape: Shape,
        *,
        row_count: int,
        classes: int,
        seed: int,
        teacher_classifier: nn.Linear,
    ) -> nn.Module:
        """Errors: ``UsageError`` where the classifier doesn't fit the channels of the hint or the number of classes."""
        for shape in (student_shape, teacher_shape):
            check_shape(shape, "hint loss 'simkd'")
        student, teacher = map_shape(student_shape)[0], map_shape(teacher_shape)[0]
        takes, gives = teacher_classifier.in_features, teacher_classifier.out_features
        if takes != teacher or gives != classes:
            raise UsageError(
                f"hint loss 'simkd': the teacher's classifier takes {takes} and gives {gives}, but the hint "
                f"has {teacher} channels and there are {classes} classes: name the last layer before the classifier"
            )
        with seeded(seed):
            module = _SimKD(student, teacher, max(1, teacher // self.factor))
        ours, theirs = map_shape(student_shape), map_shape(teacher_shape)
        module.size = (min(ours[1], theirs[1]), min(ours[2], theirs[2]))
        return module


class _SimKD(nn.Module):
    def __init__(self, student: int, teacher: int, middle: int) -> None:
        super().__init__()
        self.projector = projector(student, middle, teacher, BatchNorm)
        self.size = (1, 1)  # (H, W) of the maps that the projector is trained on; set by ``build``

    @full_precision
    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        s, t = same_size(as_map(student), as_map(teacher))
        return F.mse_loss(self.projector(s), t)
