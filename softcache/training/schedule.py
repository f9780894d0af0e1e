"""The optimizer, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from softcache.training.config import FitConfig


def build_optimizer(config: FitConfig, modules: Iterable[nn.Module], device: torch.device) -> torch.optim.Optimizer:
    """Over all parameters that want gradients, each once; fused kernels where the device has them."""
    parameters = list(dict.fromkeys(p for module in modules for p in module.parameters() if p.requires_grad))
    fused = device.type in ("cuda", "cpu")
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.momentum > 0,
            fused=fused,
        )
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=fused)


def learning_rate(config: FitConfig, step: int, steps_per_epoch: int) -> float:
    """At ``step`` (from 0) of ``epochs · steps_per_epoch``: linear warm-up, then the schedule; cosine ends at 0."""
    epoch = step / steps_per_epoch
    if epoch < config.warmup:
        return config.lr * (step + 1) / (config.warmup * steps_per_epoch)
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "step":
        return config.lr * config.gamma ** sum(epoch >= milestone for milestone in milestones(config))
    progress = (epoch - config.warmup) / max(config.epochs - config.warmup, 1e-9)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def milestones(config: FitConfig) -> tuple[int, ...]:
    """Epochs of the step schedule: as given, else at 5/8, 3/4 and 7/8 of the training (150, 180, 210 of 240)."""
    if config.milestones:
        return config.milestones
    return tuple(round(config.epochs * share) for share in (0.625, 0.75, 0.875))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
