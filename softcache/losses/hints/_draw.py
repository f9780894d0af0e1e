"""Random numbers by key: equal seeds, steps and rows give equal numbers on every device and in any batch."""

from __future__ import annotations

import torch

GOLDEN = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as int64
MIX_1 = -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
MIX_2 = -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB


def keyed_integers(key_b: torch.Tensor, count: int, below_b: torch.Tensor) -> torch.Tensor:
    """(B, count) int64: the first ``count`` numbers of each key (B,) int64, in 0..below-1, with below (B,) < 2³¹.

    They are the upper 31 bits of splitmix64 of a counter, scaled. int64 wraps around as uint64 does.

    >>> keyed_integers(torch.tensor([7]), 4, torch.tensor([1]))  # the only number below 1
    tensor([[0, 0, 0, 0]])
    """
    counters = torch.arange(1, count + 1, device=key_b.device) * GOLDEN
    bits = _mixed(key_b[:, None] + counters) >> 33 & 0x7FFFFFFF
    return bits * below_b[:, None] >> 31


def keys(seed: int, step: torch.Tensor, rows_b: torch.Tensor) -> torch.Tensor:
    """One int64 key for each row, from a seed and a step (a scalar int64 tensor)."""
    start = torch.full_like(step, seed)
    return _mixed(_mixed(_mixed(start + GOLDEN) + step * GOLDEN) + rows_b * GOLDEN)


def _mixed(z: torch.Tensor) -> torch.Tensor:
    """The finalizer of splitmix64. ``>>`` of int64 copies the sign bit, so the upper bits are masked."""
    z = (z ^ (z >> 30 & 0x3FFFFFFFF)) * MIX_1
    z = (z ^ (z >> 27 & 0x1FFFFFFFFF)) * MIX_2
    return z ^ (z >> 31 & 0x1FFFFFFFF)
