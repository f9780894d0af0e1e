"""Losses on logits as functions, and pixels as a network's input, for loops of one's own.

    import softcache.functional as F

    loss = F.kl(student_logits, batch.targets["logits"], T=4)

Each loss of ``softcache losses`` is a function of its name: ``name(student, teacher, T=None, labels=None, **options)``,
for logits (B, C), with the options of its spec as keywords. It isn't multiplied by a weight. Of outputs (B, L, C) whose
rows have lengths of their own ``mask=batch.masks["tags"]``, (B, L) with 1 for a row's own places, leaves out what rows
are filled up with; labels are then (B, L) too.

    loss = F.kl(student_tags, batch.targets["tags"], mask=batch.masks["tags"])

The teacher's side may also be ``softcache.Leaders``, as a cache in ``topk`` gives them: each loss then takes the logits
for its own temperature.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from softcache import registry
from softcache.inputs import WHITE
from softcache.losses._loss import loss_type
from softcache.losses._target import Target, changed
from softcache.losses._terms import Term
from softcache.ragged import offsets_of


def to_input(pixels: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Pixels (B, H, W, C) uint8 → (B, C, H, W) float32, ``(pixels / 255 - mean) / std`` with one number a channel;
    uint16 are divided by 65535.

    Grey pixels and three numbers give three channels.

    >>> to_input(torch.full((1, 1, 1, 1), 255, dtype=torch.uint8), mean=[0.5], std=[0.25]).flatten()
    tensor([2.])
    """
    shift, scale = (torch.tensor(numbers, device=pixels.device).view(1, -1, 1, 1) for numbers in (mean, std))
    # Floats are mixed of pixels of 8 bits. A GPU divides by a tensor; of a number it takes the reciprocal first, which
    # rounds twice.
    largest = WHITE.get(str(pixels.dtype).removeprefix("torch."), WHITE["uint8"])
    white = torch.full((), float(largest), device=pixels.device)
    return (pixels.permute(0, 3, 1, 2).float() / white - shift) / scale


@functools.cache
def _function(name: str) -> Callable[..., torch.Tensor]:
    cls = loss_type(name)

    def loss(
        student: torch.Tensor,
        teacher: Target,
        T: float | None = None,
        labels: torch.Tensor | None = None,
        *,
        mask: torch.Tensor | None = None,
        standardize: bool = False,
        **options: Any,
    ) -> torch.Tensor:
        term, offset = Term(name, cls(**options), standardize=standardize), None
        if mask is not None:
            own = mask.bool()
            offset = offsets_of(own.sum(1).cpu().numpy())
            student, teacher = student[own], changed(teacher, lambda values: values[own])
            labels = None if labels is None else labels[own]
        return term(student, teacher, term.T_schedule().at(0, 1) if T is None else T, labels, offset)

    loss.__name__ = loss.__qualname__ = name
    loss.__doc__ = cls.__doc__
    return loss


def __getattr__(name: str) -> Callable[..., torch.Tensor]:
    if name.startswith("_") or name not in registry.names("losses"):
        raise AttributeError(f"module 'softcache.functional' has no loss {name!r}")
    return _function(name)


def __dir__() -> list[str]:
    return sorted([*registry.names("losses"), "to_input"])
