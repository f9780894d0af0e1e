"""``nkd``: normalized knowledge distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from softcache.losses._contract import Need
from softcache.losses._labelled import at_label, label_mask, labelled_mean, log_others
from softcache.losses._loss import Loss
from softcache.losses._precision import full_precision


@dataclass(frozen=True)
class NKD(Loss):
    """``-p_t[y] log p_s[y] - gamma T² Σ_{i≠y} q_t,i log q_s,i``, averaged over labelled samples.

    p: the softmax at T 1, whatever T is. q: the softmax at T over the classes other than the label's. Because both
    temperatures occur, the logits of averaged probabilities can't take the place of the teacher's.
    Source: arXiv 2303.13005.

    >>> teacher = torch.tensor([[2.0, 1.0, 1.0]]).log()  # p_t[y] = 1/2, q_t = (1/2, 1/2)
    >>> NKD(gamma=0.0)(torch.zeros(1, 3), teacher, T=1.0, labels=torch.tensor([0]))  # log 3 / 2
    tensor(0.5493)
    """

    formula: ClassVar[str] = "-p_t[y] log p_s[y] - gamma T² Σ_{i≠y} q_t log q_s"
    source: ClassVar[str] = "NKD, arXiv 2303.13005"
    example: ClassVar[str] = "--loss nkd"
    needs: ClassVar[frozenset[Need]] = frozenset({"labels"})
    default_T: ClassVar[float | None] = 1.0

    gamma: float = 1.5

    @full_precision
    def __call__(
        self, student: torch.Tensor, teacher: torch.Tensor, T: float, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits (B, C) of student and teacher, and labels (B,) int64, -1 for none → a scalar."""
        assert labels is not None
        mask = label_mask(labels, student.shape[1])
        log_s, log_t = F.log_softmax(student, dim=1), F.log_softmax(teacher, dim=1)
        target = -at_label(log_t, labels).exp() * at_label(log_s, labels)
        q_t = log_others(teacher / T, mask).exp().masked_fill(mask, 0.0)
        others = -(q_t * log_others(student / T, mask)).sum(1)
        return labelled_mean(target + self.gamma * T * T * others, labels)
