"""``binary_kl``: the distillation loss of outputs that are a sigmoid each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from softcache.losses._contract import Kind
from softcache.losses._loss import Loss
from softcache.losses._precision import full_precision


@dataclass(frozen=True)
class BinaryKL(Loss):
    """``T² KL(b(z_t/T) ‖ b(z_s/T))``, averaged over the batch and the outputs; b(z): the pair (σ(z), 1 - σ(z)).

    Each output is a distribution over yes and no of its own. The mean over outputs gives it the same share of the loss
    however many there are, as in the binary cross-entropy with the labels. For one output it is
    ``kl`` of the logits (z, 0). Source: the logits' part of Multi-Label Knowledge Distillation, arXiv 2308.06453.

    >>> teacher = torch.tensor([[3.0]]).log()  # probabilities 3/4 and 1/4
    >>> BinaryKL()(torch.zeros(1, 1), teacher, T=1.0)  # log 2 minus the teacher's entropy
    tensor(0.1308)
    """

    formula: ClassVar[str] = "mean T² KL(b(z_t/T) ‖ b(z_s/T)), b = (σ, 1 - σ) of each output"
    source: ClassVar[str] = "Multi-label KD, arXiv 2308.06453"
    example: ClassVar[str] = "--loss binary_kl"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"binary"})
    through_softmax: ClassVar[bool] = True
    zero_for_perfect: ClassVar[bool] = True
    standardizes: ClassVar[bool] = False
    least_classes: ClassVar[int] = 1
    default_T: ClassVar[float | None] = 1.0

    @full_precision
    def __call__(
        self, student: torch.Tensor, teacher: torch.Tensor, T: float, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits (B, C) of student and teacher → a scalar. ``labels`` are ignored."""
        s, t = student / T, teacher / T
        yes = torch.sigmoid(t) * (F.logsigmoid(t) - F.logsigmoid(s))
        no = torch.sigmoid(-t) * (F.logsigmoid(-t) - F.logsigmoid(-s))
        return T * T * (yes + no).mean()
