"""``ttm``: transformed teacher matching, with a temperature on the teacher's side only."""

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
class TTM(Loss):
    """``KL(r ‖ softmax(z_s))``, averaged over the batch; r: the teacher's probabilities to the power ``gamma``.

    r is scaled to sum 1, so it is softmax(gamma z_t): the teacher's softmax at the temperature 1 / gamma. The student
    has no temperature, so ``--T`` has no effect here, and there is no T². A student that equals the teacher is not at
    0: r is smoother. Averaged probabilities are those at T 1. The paper chooses ``gamma`` from 0.1 to 0.4 and the
    weight by pair of networks; the default weight 45 with gamma 0.1 is the released code's example (vgg13 to vgg8 on
    CIFAR-100), where the hard-label loss has weight 1. Source: arXiv 2402.11148, section 3.

    >>> teacher = torch.tensor([[9.0, 1.0]]).log()  # with gamma 1/2, r = (3/4, 1/4)
    >>> TTM(gamma=0.5)(torch.zeros(1, 2), teacher, T=1.0)  # log 2 minus the entropy of r
    tensor(0.1308)
    """

    formula: ClassVar[str] = "KL(softmax(gamma z_t) ‖ softmax(z_s))"
    source: ClassVar[str] = "TTM, arXiv 2402.11148"
    example: ClassVar[str] = "--loss ttm"
    through_softmax: ClassVar[bool] = True
    default_weight: ClassVar[str] = "45"

    gamma: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.gamma < math.inf:
            raise UsageError(f"loss 'ttm': gamma={self.gamma:g} is a power and must be above 0")

    def target_T(self, T: float) -> float:
        """Of its power of probabilities."""
        return 1 / self.gamma

    @full_precision
    def __call__(
        self, student: torch.Tensor, teacher: torch.Tensor, T: float, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits (B, C) of student and teacher → a scalar. ``T`` and ``labels`` are ignored."""
        log_s = F.log_softmax(student, dim=1)
        log_r = F.log_softmax(self.gamma * teacher, dim=1)
        return F.kl_div(log_s, log_r, reduction="batchmean", log_target=True)
