"""Means over the samples of a batch that have a label, and softmaxes that treat the label's class apart."""

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
    """The log-softmax over the classes that are not masked: (B, C), with 0 at the masked ones.

    They are excluded exactly rather than by subtracting a large number, so this holds in any dtype.
    """
    others = torch.log_softmax(logits_bc.masked_fill(mask_bc, float("-inf")), dim=1)
    return others.masked_fill(mask_bc, 0.0)


def log_pair(logits_bc: torch.Tensor, mask_bc: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """log p and log(1 - p) of the one class a row that is masked, (B,) each; p: the softmax.

    log(1 - p) is the logsumexp of the other classes, which loses no digits where p is near 1.

    >>> log_p, log_rest = log_pair(torch.tensor([[2.0, 1.0, 1.0]]).log(), torch.tensor([[True, False, False]]))
    >>> log_p.exp(), log_rest.exp()
    (tensor([0.5000]), tensor([0.5000]))
    """
    log_p = torch.log_softmax(logits_bc, dim=1)
    rest = torch.logsumexp(log_p.masked_fill(mask_bc, float("-inf")), dim=1)
    return log_p.masked_fill(~mask_bc, 0.0).sum(1), rest


def pair_kl(student: tuple[torch.Tensor, torch.Tensor], teacher: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """KL of the teacher's pair and the student's, of ``log_pair`` each: (B,)."""
    (log_p_s, log_rest_s), (log_p_t, log_rest_t) = student, teacher
    return log_p_t.exp() * (log_p_t - log_p_s) + log_rest_t.exp() * (log_rest_t - log_rest_s)
