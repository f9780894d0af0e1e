"""``dkd``: decoupled knowledge distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from softcache.losses._contract import Need
from softcache.losses._labelled import label_mask, labelled_mean, log_others, log_pair, pair_kl
from softcache.losses._loss import Loss
from softcache.losses._precision import full_precision


@dataclass(frozen=True)
class DKD(Loss):
    """``alpha T² KL(b_t ‖ b_s) + beta T² KL(q_t ‖ q_s)``, averaged over labelled samples.

    b: the pair (p_y, 1 - p_y) of the label's class at T. q: the softmax at T over the other classes. With ``alpha`` 1
    and, for each sample, ``beta`` 1 - p_t[y], this is ``kl``. The paper chooses ``beta`` by pair of networks: 2, 6 or 8
    on CIFAR-100, and 0.5 with T 1 and no warm-up on ImageNet. The default weight is the paper's warm-up, which rises to
    1 over the first 20 of its 240 epochs: a twelfth of the training, whatever its length (``weight=1`` for none). The
    hard-label loss has weight 1 beside it.
    Source: arXiv 2203.08679, equation 7.

    >>> teacher = torch.tensor([[2.0, 1.0, 1.0]]).log()  # b_t = (1/2, 1/2), q_t = q_s = (1/2, 1/2)
    >>> DKD()(torch.zeros(1, 3), teacher, T=1.0, labels=torch.tensor([0]))  # b_s = (1/3, 2/3)
    tensor(0.0589)
    """

    formula: ClassVar[str] = "alpha T² KL(b_t ‖ b_s) + beta T² KL(q_t ‖ q_s)"
    source: ClassVar[str] = "DKD, arXiv 2203.08679"
    example: ClassVar[str] = "--loss dkd"
    needs: ClassVar[frozenset[Need]] = frozenset({"labels"})
    through_softmax: ClassVar[bool] = True
    zero_for_perfect: ClassVar[bool] = True
    default_T: ClassVar[float | None] = 4.0
    default_weight: ClassVar[str] = "0:1:warmup=1/12"

    alpha: float = 1.0
    beta: float = 8.0

    @full_precision
    def __call__(
        self, student: torch.Tensor, teacher: torch.Tensor, T: float, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits (B, C) of student and teacher, and labels (B,) int64, -1 for none → a scalar."""
        assert labels is not None
        mask = label_mask(labels, student.shape[1])
        target = pair_kl(log_pair(student / T, mask), log_pair(teacher / T, mask))
        log_qs, log_qt = log_others(student / T, mask), log_others(teacher / T, mask)
        others = (log_qt.exp() * (log_qt - log_qs)).masked_fill(mask, 0.0).sum(1)
        return T * T * labelled_mean(self.alpha * target + self.beta * others, labels)
