"""``dist``: soft targets matched up to their linear correlation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from softcache.losses._contract import Scope
from softcache.losses._loss import Loss
from softcache.losses._precision import full_precision


@dataclass(frozen=True)
class DIST(Loss):
    """``T² [beta (1 - mean_b ρ(p_s[b], p_t[b])) + gamma (1 - mean_c ρ(p_s[:, c], p_t[:, c]))]``.

    p: the softmax at T. ρ: Pearson's correlation. Where one side is constant, ρ doesn't exist, and the sample or class
    adds 0 (and no gradient) to its mean. ``eps`` is added to the product of norms, as in the published code, so that
    classes whose probabilities are tiny add no gradient; with 0, which is Pearson's ρ, a class counts as much as any
    other however small its probabilities are. At T 1 with confident teachers the two differ by orders of magnitude. The
    paper uses T 4 on CIFAR-100 and 1 on ImageNet, and weight 2 beside the hard-label loss with weight 1.
    Source: arXiv 2205.10536.

    >>> student, teacher = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    >>> DIST()(student, teacher, T=1.0)  # ρ is -1 between classes; within a class one sample is constant
    tensor(2.)
    """

    formula: ClassVar[str] = "T² [beta (1 - mean_b ρ(p_s, p_t)) + gamma (1 - mean_c ρ(p_s, p_t))]"
    source: ClassVar[str] = "DIST, arXiv 2205.10536"
    example: ClassVar[str] = "--loss dist"
    scope: ClassVar[Scope] = "batch"
    through_softmax: ClassVar[bool] = True
    default_T: ClassVar[float | None] = 4.0
    default_weight: ClassVar[str] = "2"

    beta: float = 1.0
    gamma: float = 1.0
    eps: float = 1e-8

    @full_precision
    def __call__(
        self, student: torch.Tensor, teacher: torch.Tensor, T: float, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits (B, C) of student and teacher → a scalar. ``labels`` are ignored."""
        p_s, p_t = F.softmax(student / T, dim=1), F.softmax(teacher / T, dim=1)
        between = _distance(p_s, p_t, self.eps)
        within = _distance(p_s.T, p_t.T, self.eps)
        return T * T * (self.beta * between + self.gamma * within)


def _distance(a: torch.Tensor, b: torch.Tensor, eps: float) -> torch.Tensor:
    """Mean over rows of 1 - ρ, for (R, n) twice."""
    (a, scale_a, varies_a), (b, scale_b, varies_b) = _centred(a), _centred(b)
    norms = a.norm(dim=1) * b.norm(dim=1)
    if eps:
        norms = norms + eps / scale_a / scale_b
    varies = varies_a & varies_b
    rho = (a * b).sum(1) / norms.masked_fill(~varies, 1.0)
    return torch.where(varies, 1 - rho, torch.zeros_like(rho)).mean()


def _centred(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows minus their mean, divided by their largest entry so that squares don't underflow; that entry; and whether
    the row varies at all: numbers below the smallest normal one have no reciprocal."""
    x = x - x.mean(1, keepdim=True)
    largest = x.detach().abs().amax(1)
    varies = largest > torch.finfo(x.dtype).tiny
    scale = largest.masked_fill(~varies, 1.0)
    return x / scale[:, None], scale, varies
