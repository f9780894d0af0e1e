"""Means over the samples of a batch that have a label."""

from __future__ import annotations

import torch


def labelled_mean(rows_b: torch.Tensor, labels_b: torch.Tensor) -> torch.Tensor:
    """The mean of (B,) over samples whose label isn't -1; 0, connected to the graph, where there is none.

    Samples are masked rather than selected, because selecting would wait for the device.

    >>> labelled_mean(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0, -1, 4]))
    tensor(3.5000)
    """
    known = labels_b >= 0
    kept = torch.where(known, rows_b, torch.zeros_like(rows_b))
    return kept.sum() / known.sum().clamp_min(1)


def at_label(values_bc: torch.Tensor, labels_b: torch.Tensor) -> torch.Tensor:
    """(B, C) → (B,): the value at each sample's label, or at class 0 for a sample without a label."""
    return values_bc.gather(1, labels_b.clamp_min(0).unsqueeze(1)).squeeze(1)


def label_mask(labels_b: torch.Tensor, classes: int) -> torch.Tensor:
    """(B,) → (B, C) bool: true at each sample's label, or at class 0 for a sample without a label."""
    return torch.arange(classes, device=labels_b.device) == labels_b.clamp_min(0).unsqueeze(1)


def log_others(logits_bc: torch.Tensor, mask_bc: torch.Tensor) -> torch.Tensor:
    """The log-softmax over the classes that are not masked: (B, C), with 0 at the masked class.

    The class is excluded exactly rather than by subtracting a large number, so this holds in any dtype.
    """
    others = torch.log_softmax(logits_bc.masked_fill(mask_bc, float("-inf")), dim=1)
    return others.masked_fill(mask_bc, 0.0)
