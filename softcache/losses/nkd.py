"""``nkd``: normalized knowledge distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from softcache.losses._labelled import at_label, label_mask, labelled_mean, log_others
from softcache.losses._precision import full_precision


@dataclass(frozen=True)
class NKD:
    """``-p_t[y] log p_s[y] - gamma T² Σ_{i≠y} q_t,i log q_s,i``, mean over labelled rows.

    p: softmax at T 1, whatever T is; q: softmax at T over the classes but the label's. Because both
    temperatures occur, averaged probabilities can't stand in for logits. Source: arXiv 2303.13005.
    """

    formula: ClassVar[str] = "-p_t[y] log p_s[y] - gamma T² Σ_{i≠y} q_t log q_s"
    source: ClassVar[str] = "NKD, arXiv 2303.13005"
    needs_labels: ClassVar[bool] = True
    through_softmax: ClassVar[bool] = False
    zero_for_perfect: ClassVar[bool] = False
    default_T: ClassVar[float | None] = 1.0
    default_weight: ClassVar[str] = "1"

    gamma: float = 1.5

    @full_precision
    def __call__(self, student: torch.Tensor, teacher: torch.Tensor, T: float, labels: torch.Tensor) -> torch.Tensor:
        """Logits (B, C) twice and labels (B,) int64, -1 for none → scalar."""
        mask = label_mask(labels, student.shape[1])
        log_s, log_t = F.log_softmax(student, dim=1), F.log_softmax(teacher, dim=1)
        target = -at_label(log_t, labels).exp() * at_label(log_s, labels)
        q_t = log_others(teacher / T, mask).exp().masked_fill(mask, 0.0)
        others = -(q_t * log_others(student / T, mask)).sum(1)
        return labelled_mean(target + self.gamma * T * T * others, labels)
