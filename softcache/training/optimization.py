"""How parameters are updated: the optimizer, the learning rate as a pure function of the step, and what a step is."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("cosine", "step", "constant")


@dataclass(frozen=True)
class Optimization:
    """``lr``: the peak learning rate; ``warmup``: epochs of linear rise to it; ``milestones``: epochs at which the
    step schedule multiplies it by ``gamma``, by default 5/8, 3/4 and 7/8 of the training (150, 180, 210 of 240);
    ``momentum``: of SGD, ``nesterov``: whether it is Nesterov's; ``clip_grad``: a bound on the gradient's norm, 0
    for none; ``accumulate``: batches per optimizer step."""

    optimizer: str
    lr: float
    weight_decay: float
    momentum: float = 0.9
    nesterov: bool = True
    schedule: str = "cosine"
    warmup: float = 0.0
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    clip_grad: float = 0.0
    accumulate: int = 1

    def build(
        self, modules: Iterable[nn.Module], device: torch.device, *, recorded: bool = False
    ) -> torch.optim.Optimizer:
        """Over all parameters that want gradients, each once; fused kernels where the device has them. ``recorded``:
        whether its steps go into a CUDA graph, which reads the learning rate from the device."""
        parameters = list(dict.fromkeys(p for module in modules for p in module.parameters() if p.requires_grad))
        fused = device.type in ("cuda", "cpu")
        lr: float | torch.Tensor = torch.tensor(self.lr, device=device) if recorded else self.lr
        if self.optimizer == "sgd":
            return torch.optim.SGD(
                parameters,
                lr=lr,
                momentum=self.momentum,
                weight_decay=self.weight_decay,
                nesterov=self.nesterov and self.momentum > 0,
                fused=fused,
            )
        kind = torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW
        return kind(parameters, lr=lr, weight_decay=self.weight_decay, fused=fused, capturable=recorded)

    def learning_rate(self, step: int, steps_per_epoch: int, epochs: int) -> float:
        """At ``step`` (from 0) of ``epochs · steps_per_epoch``: linear warm-up, then the schedule; cosine ends at 0."""
        epoch = step / steps_per_epoch
        if epoch < self.warmup:
            return self.lr * (step + 1) / (self.warmup * steps_per_epoch)
        if self.schedule == "constant":
            return self.lr
        if self.schedule == "step":
            milestones = self.milestones or tuple(round(epochs * share) for share in (0.625, 0.75, 0.875))
            return self.lr * self.gamma ** sum(epoch >= milestone for milestone in milestones)
        progress = (epoch - self.warmup) / max(epochs - self.warmup, 1e-9)
        return self.lr * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def restore(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Gives an optimizer the state of another, which may have been built for a recording or not."""
    own = [[(name, group[name]) for name in ("lr", "capturable") if name in group] for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, kept in zip(optimizer.param_groups, own, strict=True):
        group.update(kept)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr
