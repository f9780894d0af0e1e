"""What a loss on outputs trains beside the student."""

from __future__ import annotations

import torch
from torch import nn


class LossModule(nn.Module):
    """The module of a loss that has parameters: ``Loss.build`` makes it, and it is called in the loss's place.

    Its ``forward`` takes and gives what ``Loss.__call__`` does. Its parameters are in the student's optimizer and in
    its checkpoint. What it needs to know of the epoch belongs into buffers that ``begin_epoch`` fills, so that a step
    does the same work in every epoch.

    shown: scalars of the last forward pass, by name, without gradients. ``metrics.jsonl`` has their mean over an epoch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shown: dict[str, torch.Tensor] = {}

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Called before each epoch (the first is 0) of a training of ``epochs``."""
