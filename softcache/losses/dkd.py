"""``dkd``: decoupled knowledge distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from softcache.losses._labelled import at_label, label_mask, labelled_mean, log_others
from softcache.losses._precision import full_precision


@dataclass(frozen=True)
class DKD:
    """``alpha T² KL(b_t ‖ b_s) + beta T² KL(q_t ‖ q_s)``, mean over labelled rows.

    b: the pair (p_y, 1 - p_y) of the label's class at T; q: softmax at T over the other classes. ``kl`` is
    this with ``alpha`` 1 and ``beta`` 1 - p_t[y] of each row. ``beta`` is chosen by pair in the paper: 2, 6
    or 8 on CIFAR-100, and 0.5 with T 1 and no warm-up on ImageNet. The default weight is the paper's warm-up:
    it rises to 1 over the first 20 epochs (``weight=1`` for none); the labels' term has weight 1 beside it.
    Source: arXiv 2203.08679, equation 7.
    """

    formula: ClassVar[str] = "alpha T² KL(b_t ‖ b_s) + beta T² KL(q_t ‖ q_s)"
    source: ClassVar[str] = "DKD, arXiv 2203.08679"
    needs_labels: ClassVar[bool] = True
    through_softmax: ClassVar[bool] = True
    zero_for_perfect: ClassVar[bool] = True
    default_T: ClassVar[float | None] = 4.0
    default_weight: ClassVar[str] = "0:1:warmup=20"

    alpha: float = 1.0
    beta: float = 8.0

    @full_precision
    def __call__(self, student: torch.Tensor, teacher: torch.Tensor, T: float, labels: torch.Tensor) -> torch.Tensor:
        """Logits (B, C) twice and labels (B,) int64, -1 for none → scalar."""
        mask = label_mask(labels, student.shape[1])
        target = _pair_kl(student / T, teacher / T, labels, mask)
        log_qs, log_qt = log_others(student / T, mask), log_others(teacher / T, mask)
        others = (log_qt.exp() * (log_qt - log_qs)).masked_fill(mask, 0.0).sum(1)
        return T * T * labelled_mean(self.alpha * target + self.beta * others, labels)


def _pair_kl(s: torch.Tensor, t: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """KL of (p_y, 1 - p_y), (B,); log(1 - p_y) sums the others' logarithms, so p_y near 1 loses no digits."""
    log_s, log_t = F.log_softmax(s, dim=1), F.log_softmax(t, dim=1)
    hit_s, hit_t = at_label(log_s, labels), at_label(log_t, labels)
    miss_s = torch.logsumexp(log_s.masked_fill(mask, float("-inf")), dim=1)
    miss_t = torch.logsumexp(log_t.masked_fill(mask, float("-inf")), dim=1)
    return hit_t.exp() * (hit_t - hit_s) + miss_t.exp() * (miss_t - miss_s)
