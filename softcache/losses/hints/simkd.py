"""``simkd``: the student answers through the teacher's own classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from softcache.errors import UsageError
from softcache.losses._precision import full_precision
from softcache.losses.hints._regressor import BatchNorm
from softcache.losses.hints._seeded import seeded
from softcache.losses.hints._shapes import Shape, as_map, check_shape, map_shape, same_size
from softcache.models._through import projector


@dataclass(frozen=True)
class SimKD:
    """``mean (r(f_s) - f_t)²`` of the last maps; logits are the teacher's classifier on mean r(f_s).

    r: 1×1, 3×3 and 1×1 convolutions with batch norm and ReLU, with the teacher's channels / ``factor``
    between; its last ReLU expects a hint after a ReLU. The larger map is average-pooled. Alone it trains the
    student: the paper has no term on labels or logits. Source: arXiv 2203.14001.

    Needs of the loop: ``teacher_classifier`` in ``build`` (the teacher's last ``nn.Linear``, whose shape is
    checked), the module in the optimizer, and in place of the student's own logits, wherever those are
    evaluated, put in a term, or exported, those of ``models._through.Through`` with the module's ``projector``
    and ``size``.
    """

    formula: ClassVar[str] = "mean (r(f_s) - f_t)²; student's logits = teacher's classifier(mean r(f_s))"
    source: ClassVar[str] = "SimKD, arXiv 2203.14001"
    needs: ClassVar[str] = "last map + the teacher's classifier"
    default_weight: ClassVar[str] = "1"
    extras: ClassVar[tuple[str, ...]] = ("teacher_classifier",)
    replaces_logits: ClassVar[bool] = True

    factor: int = 2

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise UsageError(f"hint loss 'simkd': factor={self.factor} divides the channels: it must be 1 or more")

    def build(
        self,
        student_shape: Shape,
        teacher_shape: Shape,
        *,
        rows: int,
        classes: int,
        seed: int,
        teacher_classifier: nn.Linear,
    ) -> nn.Module:
        """Errors: ``UsageError`` where the classifier doesn't fit the hint's channels or the classes."""
        for shape in (student_shape, teacher_shape):
            check_shape(shape, "hint loss 'simkd'")
        student, teacher = map_shape(student_shape)[0], map_shape(teacher_shape)[0]
        takes, gives = teacher_classifier.in_features, teacher_classifier.out_features
        if takes != teacher or gives != classes:
            raise UsageError(
                f"hint loss 'simkd': the teacher's classifier takes {takes} and gives {gives}, but the hint "
                f"has {teacher} channels and there are {classes} classes: name the one before it"
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
        self.size = (1, 1)  # (H, W) at which the projector learns: set by who knows both shapes

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
        return F.mse_loss(self.projector(s), t)
