"""``cc``: correlation congruence between the samples of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from softcache.losses import cc
from softcache.losses._contract import Need, Scope
from softcache.losses.hints._hint_loss import HintLoss
from softcache.losses.hints._of_vectors import OfVectors
from softcache.losses.hints._shapes import Shape, check_shape


@dataclass(frozen=True)
class CC(HintLoss):
    """``cc`` of the teacher's outputs (``softcache.losses.cc``), of activations.

    ``mean_{B×B} (K(f_s) - K(f_t))²``, K the Gaussian kernel of L2-normalized vectors as a Taylor series. Maps and
    tokens are averaged over their positions, and nothing is trained. Source: arXiv 1904.01802.

    >>> import torch
    >>> module = CC().build((2,), (2,), row_count=2, classes=2, seed=0)
    >>> module(torch.eye(2), torch.ones(2, 2))  # half of the entries differ, by 1.12 · exp(-0.8)
    tensor(0.1266)
    """

    formula: ClassVar[str] = "mean (K(f_s) - K(f_t))², K = e^(-2γ) Σ_{p≤P} (2γ)^p/p! (f̂ f̂ᵀ)^p"
    source: ClassVar[str] = "Correlation congruence, arXiv 1904.01802"
    example: ClassVar[str] = "--hint cc:teacher=fc:in,student=fc:in --alpha 0 --beta 1"
    scope: ClassVar[Scope] = "batch"
    needs: ClassVar[frozenset[Need]] = frozenset({"vectors"})
    default_weight: ClassVar[str] = "0.003"
    of_lengths: ClassVar[Literal["places", "rows"] | None] = "rows"
    zero_for_perfect: ClassVar[bool] = True

    gamma: float = 0.4
    order: int = 2

    def __post_init__(self) -> None:
        cc.CC(self.gamma, self.order)  # refuses what can't be

    def build(
        self, student_shape: Shape, teacher_shape: Shape, *, row_count: int, classes: int, seed: int
    ) -> nn.Module:
        for shape in (student_shape, teacher_shape):
            check_shape(shape, "hint loss 'cc'")
        return OfVectors(cc.CC(self.gamma, self.order))
