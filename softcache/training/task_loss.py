"""The loss of the labels, by their kind: cross-entropy, binary cross-entropy, squared error."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from softcache.datasets._labels import UNKNOWN

Mixed = tuple[torch.Tensor, torch.Tensor]


def hard_loss(
    logits_bc: torch.Tensor, labels: torch.Tensor, smoothing: float = 0.0, mixed: Mixed | None = None
) -> torch.Tensor:
    """The loss of the labels of a batch, averaged over those that are there; 0, with a graph, where there are none.

    ``labels``: their dtype is their kind. int64 (B,), -1 for none: cross-entropy. uint8 (B, C), 255 for none: binary
    cross-entropy of a sigmoid each. Floating (B,) or (B, C), NaN for none: squared error. ``smoothing``: label
    smoothing; of binary labels y it makes ``y (1 - smoothing) + smoothing / 2``, of values nothing. ``mixed``: for
    views that mix two inputs, the partners' labels and the weight of the sample's own label (B,) float32; such a label
    counts where both are there, and the loss is the weighted sum of both.

    >>> hard_loss(torch.zeros(2, 4), torch.tensor([1, -1]))  # log 4
    tensor(1.3863)
    >>> hard_loss(torch.zeros(1, 3), torch.tensor([[0, 1, 255]], dtype=torch.uint8))  # log 2
    tensor(0.6931)
    >>> hard_loss(torch.zeros(2, 1), torch.tensor([3.0, float("nan")]))
    tensor(9.)
    """
    scores = logits_bc.float() if logits_bc.dtype in (torch.float16, torch.bfloat16) else logits_bc
    losses, known = _each(scores, labels, smoothing)
    if mixed is not None:
        partners, weight_b = mixed
        others, also_known = _each(scores, partners, smoothing)
        weight = weight_b if losses.ndim == 1 else weight_b[:, None]
        losses, known = weight * losses + (1 - weight) * others, known & also_known
    # Labels are masked and counted on the device: indexing by a mask would make the host wait for it.
    return torch.where(known, losses, 0.0).sum() / known.sum().clamp_min(1)


def _each(scores_bc: torch.Tensor, labels: torch.Tensor, smoothing: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of each label, finite also where there is none, and which labels there are."""
    if labels.dtype == torch.int64:
        losses = F.cross_entropy(scores_bc, labels.clamp_min(0), reduction="none", label_smoothing=smoothing)
        return losses, labels >= 0
    if labels.dtype == torch.uint8:
        known = labels != UNKNOWN
        wanted = torch.where(known, labels, 0).to(scores_bc.dtype) * (1 - smoothing) + smoothing / 2
        return F.binary_cross_entropy_with_logits(scores_bc, wanted, reduction="none"), known
    values = labels[:, None] if labels.ndim == 1 else labels
    known = ~values.isnan()
    return (scores_bc - torch.where(known, values, 0.0).to(scores_bc.dtype)).square(), known
