"""``rld``: refined logit distillation, which leaves out what a teacher that errs would teach."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from softcache.errors import UsageError
from softcache.losses._contract import Need
from softcache.losses._labelled import at_label, label_mask, labelled_mean, log_others, log_pair, pair_kl
from softcache.losses._loss import Loss
from softcache.losses._precision import full_precision


@dataclass(frozen=True)
class RLD(Loss):
    """``alpha T_a² KL(b_t ‖ b_s) + beta T² KL(m_t ‖ m_s)``, averaged over labelled samples.

    b: a pair (p, 1 - p) at T_a: of the label's class for the student, and of the class with the largest probability for
    the teacher, whichever that is. So the student becomes as sure of the label as the teacher is of its own answer.
    m: the softmax at T over the classes that the teacher puts below the label. The label and every class whose teacher
    logit is as large or larger are left out on both sides. A sample of which no class is left adds 0 to the mean, as in
    the released code. T_a is ``alpha_T``, or T where that is none, as in the released code's command for CIFAR-100.
    The other defaults are the released code's for CIFAR-100 too, with the warm-up of ``dkd``; on ImageNet it has
    ``beta`` 0.5, T 1 and no more than one epoch of warm-up. The hard-label loss has weight 1 beside it.
    Source: arXiv 2408.07703.

    >>> teacher = torch.tensor([[3.0, 4.0, 2.0, 1.0]]).log()  # b_t = (4/10, 6/10) of class 1; m_t = (2/3, 1/3)
    >>> student = torch.tensor([[4.0, 2.0, 2.0, 2.0]]).log()  # b_s = (4/10, 6/10) of class 0; m_s = (1/2, 1/2)
    >>> RLD(beta=1.0)(student, teacher, T=1.0, labels=torch.tensor([0]))  # 5/3 log 2 - log 3
    tensor(0.0566)
    """

    formula: ClassVar[str] = "alpha T_a² KL(b_t ‖ b_s) + beta T² KL(m_t ‖ m_s)"
    source: ClassVar[str] = "RLD, arXiv 2408.07703"
    example: ClassVar[str] = "--loss rld"
    needs: ClassVar[frozenset[Need]] = frozenset({"labels"})
    default_T: ClassVar[float | None] = 4.0
    default_weight: ClassVar[str] = "0:1:warmup=1/12"

    alpha: float = 1.0
    beta: float = 8.0
    alpha_T: float | None = None

    def __post_init__(self) -> None:
        if self.alpha_T is not None and not 0 < self.alpha_T < math.inf:
            raise UsageError(f"loss 'rld': alpha_T={self.alpha_T:g} is a temperature and must be above 0")

    @property
    def through_softmax(self) -> bool:  # type: ignore[override]
        """The teacher's softmax at T is all that is used, unless the pairs have a temperature of their own."""
        return self.alpha_T is None

    @full_precision
    def __call__(
        self, student: torch.Tensor, teacher: torch.Tensor, T: float, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits (B, C) of student and teacher, and labels (B,) int64, -1 for none → a scalar."""
        assert labels is not None
        classes, pair_T = student.shape[1], T if self.alpha_T is None else self.alpha_T
        pair_s = log_pair(student / pair_T, label_mask(labels, classes))
        pair_t = log_pair(teacher / pair_T, label_mask(teacher.argmax(1), classes))
        confidence = pair_T * pair_T * pair_kl(pair_s, pair_t)
        below = _below_label_kl(student, teacher, T, labels)
        return labelled_mean(self.alpha * confidence + self.beta * T * T * below, labels)


def _below_label_kl(student: torch.Tensor, teacher: torch.Tensor, T: float, labels: torch.Tensor) -> torch.Tensor:
    """(B,): KL over the classes whose teacher logit is below the label's, 0 where there is none."""
    mask = teacher >= at_label(teacher, labels).unsqueeze(1)
    none_left = mask.all(1)
    # A softmax over no class is nan: such a row keeps all, so that no nan arises, not even within the backward pass.
    mask = mask & ~none_left.unsqueeze(1)
    log_s, log_t = log_others(student / T, mask), log_others(teacher / T, mask)
    kl = (log_t.exp() * (log_t - log_s)).masked_fill(mask, 0.0).sum(1)
    return torch.where(none_left, torch.zeros_like(kl), kl)
