"""``pkt``: probabilistic knowledge transfer, which compares each sample's neighbours in the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from softcache.losses import pkt
from softcache.losses._contract import Need, Scope
from softcache.losses.hints._hint_loss import HintLoss
from softcache.losses.hints._of_vectors import OfVectors
from softcache.losses.hints._shapes import Shape, check_shape


@dataclass(frozen=True)
class PKT(HintLoss):
    """``pkt`` of the teacher's outputs (``softcache.losses.pkt``), of activations.

    ``mean_{B×B} p_t log((p_t + eps) / (p_s + eps))``; p: rows of ``(cos + 1)/2``, normalized to sum 1. Maps and tokens
    are averaged over their positions, and nothing is trained. Source: arXiv 1803.10837.

    >>> import torch
    >>> module = PKT().build((2,), (2,), row_count=2, classes=2, seed=0)
    >>> loss = module(torch.eye(2), torch.ones(2, 2))  # p_s: rows of (2/3, 1/3); p_t: all 1/2
    >>> round(loss.item(), 4)  # log(9/8) / 4
    0.0294
    """

    formula: ClassVar[str] = "mean p_t log(p_t / p_s), p rows of (cos + 1)/2 that sum to 1"
    source: ClassVar[str] = "PKT, arXiv 1803.10837"
    example: ClassVar[str] = "--hint pkt:teacher=fc:in,student=fc:in --alpha 0 --beta 1"
    scope: ClassVar[Scope] = "batch"
    needs: ClassVar[frozenset[Need]] = frozenset({"vectors"})
    default_weight: ClassVar[str] = "30000"
    of_lengths: ClassVar[Literal["places", "rows"] | None] = "rows"
    zero_for_perfect: ClassVar[bool] = True

    eps: float = 1e-7

    def __post_init__(self) -> None:
        pkt.PKT(self.eps)  # refuses what can't be

    def build(
        self, student_shape: Shape, teacher_shape: Shape, *, row_count: int, classes: int, seed: int
    ) -> nn.Module:
        for shape in (student_shape, teacher_shape):
            check_shape(shape, "hint loss 'pkt'")
        return OfVectors(pkt.PKT(self.eps))
