"""``cosine``: the angle between the student's vector and the teacher's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from softcache.losses._contract import Kind
from softcache.losses._loss import Loss
from softcache.losses._precision import full_precision


@dataclass(frozen=True)
class Cosine(Loss):
    """``1 - cos(f_s, f_t)``, averaged over the batch; it has no temperature.

    The lengths of the vectors make no difference, which suits embeddings that are compared by their angles. A vector of
    zeros has no direction: its sample adds 1 and no gradient. Source: the loss on hidden states of DistilBERT,
    arXiv 1910.01108, section 3.

    >>> Cosine()(torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 4.0]]), T=1.0)
    tensor(0.4000)
    """

    formula: ClassVar[str] = "mean (1 - cos(f_s, f_t))"
    source: ClassVar[str] = "DistilBERT, arXiv 1910.01108"
    example: ClassVar[str] = "--loss cosine:of=embedding"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"values"})
    default_beta: ClassVar[float] = 0.0
    standardizes: ClassVar[bool] = False
    least_classes: ClassVar[int] = 1
    zero_for_perfect: ClassVar[bool] = True

    @full_precision
    def __call__(
        self, student: torch.Tensor, teacher: torch.Tensor, T: float, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Values (B, C) of student and teacher → a scalar. ``T`` and ``labels`` are ignored."""
        return (1 - (_unit(student) * _unit(teacher)).sum(1)).mean()


def _unit(x: torch.Tensor) -> torch.Tensor:
    """Rows divided by their length; rows of zeros stay zeros and get no gradient."""
    largest = x.detach().abs().amax(1, keepdim=True)
    zero = largest == 0
    x = x / largest.masked_fill(zero, 1.0)  # squares neither overflow nor underflow
    length = torch.linalg.vector_norm(x.masked_fill(zero, 1.0), dim=1, keepdim=True)
    return (x / length).masked_fill(zero, 0.0)
