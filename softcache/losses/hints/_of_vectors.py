"""A loss on outputs, of activations: those that relate the samples of a batch are the same for both."""

from __future__ import annotations

import torch
from torch import nn

from softcache.losses._loss import Loss
from softcache.losses._precision import full_precision
from softcache.losses.hints._shapes import as_vector


class OfVectors(nn.Module):
    """``loss`` of activations that are averaged over their positions; nothing is trained."""

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self.loss = loss

    @full_precision
    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        return self.loss(as_vector(student), as_vector(teacher), 1.0)
