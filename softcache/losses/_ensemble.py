"""Averages of several teachers' soft targets, in the form of logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from softcache.losses._precision import full_precision


@full_precision
def average_probabilities(logits: Sequence[torch.Tensor], weights: Sequence[float], T: float) -> torch.Tensor:
    """Pseudo-logits ``T · log Σ_k w_k softmax(z_k/T)``: their softmax at T is the averaged soft targets.

    ``logits``: one (B, C) a teacher; ``weights``: one a teacher, above 0, scaled here to sum 1. A loss with
    ``through_softmax`` gets exactly what it would get from the averaged probabilities, as long as it is
    called with the same T; the others must be refused. Summed as logarithms, so that nothing underflows.
    """
    shares = torch.tensor(weights, dtype=logits[0].dtype, device=logits[0].device)
    shares = torch.log(shares / shares.sum())
    stacked = torch.stack([F.log_softmax(z / T, dim=1) for z in logits])  # (K, B, C)
    return T * torch.logsumexp(stacked + shares[:, None, None], dim=0)
