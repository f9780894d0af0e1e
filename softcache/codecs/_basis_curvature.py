"""How a Kullback-Leibler divergence of softmax answers grows with an error of the logits."""

from __future__ import annotations

import torch

TEMPERATURES = (1, 2, 4)


def curvature(logits: torch.Tensor, kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient and diagonal curvature (B, C) at ``kept`` of the sum over ``TEMPERATURES`` of T² · KL(logits ‖ kept),
    which is how losses weigh temperatures (Hinton, Vinyals and Dean 2015).

    The gradient is Σ T (q - p) and the Hessian Σ (diag q - q qᵀ), of which diag q is an upper bound; here the mean of q
    and p is taken, so that a step also stays small where q is still far too small.
    """
    gradient, curved = torch.zeros_like(logits), torch.zeros_like(logits)
    for T in TEMPERATURES:
        p, q = torch.softmax(logits / T, -1), torch.softmax(kept / T, -1)
        gradient += T * (q - p)
        curved += (p + q) / 2
    return gradient, curved
