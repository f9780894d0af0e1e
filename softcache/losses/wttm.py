"""``wttm``: transformed teacher matching, weighted by how smooth the teacher's answer is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from softcache.errors import UsageError
from softcache.losses._loss import Loss
from softcache.losses._precision import full_precision


@dataclass(frozen=True)
class WTTM(Loss):
    """``w KL(r ‖ softmax(z_s))`` of each sample, averaged over the batch; r as in ``ttm``, ``w = Σ_c p_t,c^gamma``.

    p_t: the teacher's softmax at T 1. With a gamma below 1, w is 1 where the teacher is certain, and grows to
    C^(1 - gamma) where it knows nothing, for C classes. ``--T`` has no effect here, and averaged probabilities are
    those at T 1. The paper chooses ``gamma`` from 0.1 to 0.4 and the weight by pair of networks. The defaults, gamma
    0.2 and weight 4, are the only ones that the released code names: it has them beside ``crd`` with weight 0.8 and
    the hard-label loss with weight 1. Source: arXiv 2402.11148, section 4.

    >>> teacher = torch.tensor([[9.0, 1.0]]).log()  # p_t = (9/10, 1/10): with gamma 1/2, w = 4 / √10
    >>> WTTM(gamma=0.5)(torch.zeros(1, 2), teacher, T=1.0)  # KL = 0.1308, as in ttm
    tensor(0.1655)
    """

    formula: ClassVar[str] = "(Σ_c p_t,c^gamma) KL(softmax(gamma z_t) ‖ softmax(z_s)), p_t = softmax(z_t)"
    source: ClassVar[str] = "WTTM, arXiv 2402.11148"
    example: ClassVar[str] = "--loss wttm"
    through_softmax: ClassVar[bool] = True
    default_weight: ClassVar[str] = "4"

    gamma: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.gamma < math.inf:
            raise UsageError(f"loss 'wttm': gamma={self.gamma:g} is a power and must be above 0")

    def target_T(self, T: float) -> float:
        """Of its power of probabilities."""
        return 1 / self.gamma

    @full_precision
    def __call__(
        self, student: torch.Tensor, teacher: torch.Tensor, T: float, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits (B, C) of student and teacher → a scalar. ``T`` and ``labels`` are ignored."""
        log_s = F.log_softmax(student, dim=1)
        log_power = self.gamma * F.log_softmax(teacher, dim=1)
        log_weight = torch.logsumexp(log_power, dim=1, keepdim=True)
        kl = F.kl_div(log_s, log_power - log_weight, reduction="none", log_target=True).sum(1)
        return (log_weight.squeeze(1).exp() * kl).mean()
