"""``ctkd``: distillation with a temperature that is learnt against the student."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from softcache.errors import UsageError
from softcache.losses._loss import Loss
from softcache.losses._module import LossModule
from softcache.losses._precision import full_precision
from softcache.losses.hints._seeded import seeded

START = 1.0  # of theta, as in the released code


@dataclass(frozen=True)
class CTKD(Loss):
    """``kl`` at ``T = T_min + T_range · sigmoid(theta)``; theta is trained to make the loss larger.

    The gradient of theta is multiplied by ``-lambda`` (gradient reversal), so that the temperature makes the student's
    task harder. lambda rises as a cosine from 0 to 1 over the first ``loops`` epochs: it is
    ``(1 - cos(pi · n / loops)) / 2`` in the n-th epoch, counted from 1. theta is one number that starts at 1, where T
    is 15.6, as in the released code. With ``instance`` each sample has its own theta, from two linear layers with a
    ReLU between them, of both sides' logits; they start with theta 1 for every sample. The student gets no gradient
    through them. The released code has the single number alone, so their width, that of the logits, is chosen here.

    ``metrics.jsonl`` has T, averaged over each epoch, under ``learnt``. In a loop of one's own the module that learns
    is ``CTKD().build(classes=10, seed=0)``; the loss itself, called with a T, is ``kl`` at that T.
    Source: arXiv 2211.16231.

    >>> teacher = torch.tensor([[3.0, 1.0]]).log()  # probabilities 3/4 and 1/4
    >>> CTKD()(torch.zeros(1, 2), teacher, T=1.0)  # log 2 minus the teacher's entropy
    tensor(0.1308)
    >>> module = CTKD().build(classes=2, seed=0)
    >>> value = module(torch.zeros(1, 2), teacher)
    >>> module.shown["T"]
    tensor(15.6212)
    """

    formula: ClassVar[str] = "T² KL(p_t ‖ p_s) at T = T_min + T_range · sigmoid(theta), learnt against the student"
    source: ClassVar[str] = "CTKD, arXiv 2211.16231"
    example: ClassVar[str] = "--loss ctkd"
    default_alpha: ClassVar[float] = 0.9
    default_beta: ClassVar[float] = 0.1
    zero_for_perfect: ClassVar[bool] = True

    T_min: float = 1.0
    T_range: float = 20.0
    loops: int = 10
    instance: bool = False

    def __post_init__(self) -> None:
        for name in ("T_min", "T_range"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise UsageError(f"loss 'ctkd': {name}={value:g} is part of a temperature and must be above 0")
        if self.loops < 1:
            raise UsageError(f"loss 'ctkd': loops={self.loops} is a number of epochs and must be at least 1")

    def target_T(self, T: float) -> float:
        """Where it starts: the one that is learnt is known on the device alone."""
        return self.T_min + self.T_range / (1 + math.exp(-START))

    def build(self, *, classes: int, seed: int) -> LossModule:
        with seeded(seed):
            return _Learnt(self, _of_both(classes) if self.instance else None)

    @full_precision
    def __call__(
        self,
        student: torch.Tensor,
        teacher: torch.Tensor,
        T: float | torch.Tensor,
        labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits (B, C) of student and teacher, T a number or one for each sample (B, 1) → a scalar. ``labels`` are
        ignored."""
        log_s, log_t = F.log_softmax(student / T, dim=1), F.log_softmax(teacher / T, dim=1)
        kl = F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(1, keepdim=True)  # (B, 1)
        return (T * T * kl).mean()


class _Learnt(LossModule):
    """``theta``: a parameter, or with ``of_both`` what that makes of both sides' logits. ``strength``: lambda."""

    def __init__(self, loss: CTKD, of_both: nn.Module | None) -> None:
        super().__init__()
        self.loss = loss
        self.of_both = of_both
        self.theta = nn.Parameter(torch.tensor(START)) if of_both is None else None
        self.strength: torch.Tensor
        # A function of the epoch alone, so it isn't part of a checkpoint.
        self.register_buffer("strength", torch.tensor(0.0), persistent=False)

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        done = min(epoch + 1, self.loss.loops) / self.loss.loops
        self.strength.fill_((1 - math.cos(math.pi * done)) / 2)

    @full_precision
    def forward(
        self, student: torch.Tensor, teacher: torch.Tensor, T: float = 1.0, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """As ``Loss.__call__``; the T that is given is not used."""
        theta = self.theta
        if self.of_both is not None:
            theta = self.of_both(torch.cat([student.detach(), teacher], dim=1))  # (B, 1)
        learnt = self.loss.T_min + self.loss.T_range * torch.sigmoid(_Reversed.apply(theta, self.strength))
        self.shown = {"T": learnt.detach().mean()}
        return self.loss(student, teacher, learnt)


def _of_both(classes: int) -> nn.Module:
    """(B, 2 C) → (B, 1), at first ``START`` for every input."""
    first, last = nn.Linear(2 * classes, classes), nn.Linear(classes, 1)
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, START)
    return nn.Sequential(first, nn.ReLU(), last)


class _Reversed(torch.autograd.Function):
    """The identity, whose gradient is multiplied by ``-strength``. Source: Ganin and Lempitsky, arXiv 1409.7495."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(strength)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (strength,) = ctx.saved_tensors
        return -strength * gradients[0], None
