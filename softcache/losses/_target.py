"""What a loss is given of a teacher's output: its values or, where a codec keeps no more, leaders and a tail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch


@dataclass(frozen=True)
class Leaders:
    """The largest logits of each vector, and how much all others weigh together at a temperature: these, the tail, get
    one logit for all, with which the softmax gives them the same probability as the teacher did.

    ``logits``: (B, …, C) float32, -inf for a class of the tail. ``tail``: (B, …) the tail's one logit at T = 1.
    ``falls``: (B, …, 2) by how much it is lower at T = 2 than at T = 1, and at T = 4 than at T = 2. Between these it
    is interpolated linearly in 1/T, above T = 4 extrapolated in the same way, and below T = 1 it stays as it is at 1.

    >>> teacher = torch.tensor([[8.0, 4.0, 2.0, 2.0]]).log()  # probabilities 1/2, 1/4, 1/8 and 1/8
    >>> kept = Leaders(teacher.where(teacher > 1, -torch.inf), torch.tensor([2.0]).log(), torch.zeros(1, 2))
    >>> kept.at(1.0).softmax(1)
    tensor([[0.5000, 0.2500, 0.1250, 0.1250]])
    """

    logits: torch.Tensor
    tail: torch.Tensor
    falls: torch.Tensor

    def at(self, T: float) -> torch.Tensor:
        """Logits (B, …, C) for a loss that divides them by ``T``."""
        first, second = min(max(2 - 2 / T, 0.0), 1.0), max(2 - 4 / T, 0.0)
        tail = self.tail - first * self.falls[..., 0] - second * self.falls[..., 1]
        tail = tail.clamp(min=torch.finfo(torch.float32).min)  # a fall may be as large as float32 can be
        return torch.where(self.logits == -torch.inf, tail.unsqueeze(-1), self.logits)

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Leaders:
        """Leaders of changed tensors."""
        return Leaders(change(self.logits), change(self.tail), change(self.falls))


Target: TypeAlias = torch.Tensor | Leaders


def at_temperature(target: Target, T: float) -> torch.Tensor:
    """(B, …), for a loss that divides it by ``T``."""
    return target.at(T) if isinstance(target, Leaders) else target


def changed(target: Target, change: Callable[[torch.Tensor], torch.Tensor]) -> Target:
    """A target of changed tensors."""
    return target.each(change) if isinstance(target, Leaders) else change(target)


def joined_targets(parts: Sequence[Target], join: Callable[[list[torch.Tensor]], torch.Tensor] = torch.cat) -> Target:
    """One target of several. ``join``: of tensors. Where some are leaders and others whole, these have no tail."""
    whole = [part for part in parts if isinstance(part, torch.Tensor)]
    if len(whole) == len(parts):
        return join(whole)
    kept = [part if isinstance(part, Leaders) else _without_tail(part) for part in parts]
    return Leaders(*(join([getattr(part, name) for part in kept]) for name in ("logits", "tail", "falls")))


def _without_tail(values: torch.Tensor) -> Leaders:
    return Leaders(values, values.new_zeros(values.shape[:-1]), values.new_zeros((*values.shape[:-1], 2)))
