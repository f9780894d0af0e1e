"""Sums over the rows of a batch that have a label."""

from __future__ import annotations

import torch


def labelled_mean(rows_b: torch.Tensor, labels_b: torch.Tensor) -> torch.Tensor:
    """The mean of (B,) over rows whose label isn't -1; 0, still connected to the graph, where there is none.

    Multiplied out rather than picked, so that no step waits for a count from the device.
    """
    known = labels_b >= 0
    kept = torch.where(known, rows_b, torch.zeros_like(rows_b))
    return kept.sum() / known.sum().clamp_min(1)


def at_label(values_bc: torch.Tensor, labels_b: torch.Tensor) -> torch.Tensor:
    """(B, C) → (B,): the entry of each row's label; class 0 stands in where there is no label."""
    return values_bc.gather(1, labels_b.clamp_min(0).unsqueeze(1)).squeeze(1)


def label_mask(labels_b: torch.Tensor, classes: int) -> torch.Tensor:
    """(B,) → (B, C) bool, true at each row's label; class 0 stands in where there is no label."""
    return torch.arange(classes, device=labels_b.device) == labels_b.clamp_min(0).unsqueeze(1)


def log_others(logits_bc: torch.Tensor, mask_bc: torch.Tensor) -> torch.Tensor:
    """Log-softmax without the masked class: (B, C), with 0 at the masked class.

    Excluding it exactly, rather than by subtracting a large number, holds in any dtype and for any logits.
    """
    others = torch.log_softmax(logits_bc.masked_fill(mask_bc, float("-inf")), dim=1)
    return others.masked_fill(mask_bc, 0.0)
