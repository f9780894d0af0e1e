"""The averaged soft targets of several teachers, in the form of logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from softcache.losses._precision import full_precision


@full_precision
def average_probabilities(
    logits: Sequence[torch.Tensor], weights: Sequence[float], T: float, *, kind: str = "classes"
) -> torch.Tensor:
    """Pseudo-logits ``T · log Σ_k w_k softmax(z_k/T)``: their softmax at T is the averaged soft targets.

    ``logits``: one (B, …, C) for each teacher. ``kind``: that of the output; ``binary`` averages the sigmoids of each
    number, and the sigmoid of the pseudo-logits at T is their average. ``weights``: one for each teacher, above 0; they
    are scaled to sum 1. A loss with ``through_softmax`` that is called with the same T has the value that it has for
    the averaged probabilities. Other losses must be refused. The sum is taken over logarithms, so that nothing
    underflows.

    >>> a, b = torch.tensor([[3.0, 1.0]]).log(), torch.tensor([[1.0, 3.0]]).log()
    >>> average_probabilities([a, b], [1, 1], T=1.0).softmax(1)
    tensor([[0.5000, 0.5000]])
    """
    shares = torch.tensor(weights, dtype=logits[0].dtype, device=logits[0].device)
    shares = torch.log(shares / shares.sum())
    shares = shares.view(-1, *[1] * logits[0].ndim)
    if kind == "binary":
        yes, no = (torch.stack([F.logsigmoid(sign * z / T) for z in logits]) for sign in (1, -1))  # (K, B, …, C)
        return T * (torch.logsumexp(yes + shares, dim=0) - torch.logsumexp(no + shares, dim=0))
    stacked = torch.stack([F.log_softmax(z / T, dim=-1) for z in logits])  # (K, B, …, C)
    return T * torch.logsumexp(stacked + shares, dim=0)
