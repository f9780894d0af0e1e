"""Standardized logits: a loss of these ignores the mean and the scale of the logits."""

from __future__ import annotations

import torch

from softcache.losses._precision import full_precision


@full_precision
def standardize(logits_bc: torch.Tensor) -> torch.Tensor:
    """``(z - mean_c z) / (std_c z + 1e-7)`` of each row, std unbiased, (B, C) → (B, C).

    Source: logit standardization, arXiv 2403.01427, algorithm 1.

    >>> standardize(torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[-1.0000,  0.0000,  1.0000]])
    """
    mean = logits_bc.mean(1, keepdim=True)
    std = logits_bc.std(1, keepdim=True)
    return (logits_bc - mean) / (std + 1e-7)
