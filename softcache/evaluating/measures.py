"""How good logits are, beside labels and beside a teacher's. Pure functions of tensors on the CPU.

Labels are those of ``datasets._labels`` as tensors. Of classes (N,) whole numbers, below 0 where a row has none: such
rows count in no measure that looks at labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from softcache.errors import UsageError
from softcache.losses.binary_kl import BinaryKL
from softcache.losses.kl import KL

BINS = 15
CHUNK = 4096  # rows whose logits are in float64 at once


@dataclass(frozen=True, eq=False)
class Calibration:
    """Rows by the probability of their top class, in M bins of equal width, the m-th from (m-1)/M, exclusive, to m/M.

    ``ece``: the expected calibration error, Σ count/N · |accuracy - confidence| over the bins. ``confidence``,
    ``accuracy``: (M,) float64, the mean probability of the top class and the share of hits in each bin, NaN where it is
    empty; ``count``: (M,) int64 rows. A reliability diagram draws ``accuracy`` over ``confidence``.
    Source: Guo et al., On Calibration of Modern Neural Networks, arXiv 1706.04599, section 2.
    """

    ece: float
    confidence: torch.Tensor
    accuracy: torch.Tensor
    count: torch.Tensor


@dataclass(frozen=True, eq=False)
class PerClass:
    """By class: ``count`` (C,) int64 labelled rows, ``accuracy`` (C,) float64 the share of them that is recognized (its
    recall), NaN for a class without rows."""

    count: torch.Tensor
    accuracy: torch.Tensor


def top_classes(logits_nc: torch.Tensor, most: int = 5) -> torch.Tensor:
    """Logits (N, C) → (N, min(most, C)) int64: the classes of the largest, best first. All that counts hits takes the
    top class from here, so that equal logits are broken alike everywhere."""
    return logits_nc.topk(min(max(most, 5), logits_nc.shape[1]), dim=1).indices[:, :most]


def nll(logits_nc: torch.Tensor, labels_n: torch.Tensor) -> float:
    """The mean negative log-likelihood -log softmax(z)[y] of the labelled rows, in nats; NaN where there are none."""
    known = labels_n >= 0
    logits, labels = logits_nc[known].double(), labels_n[known].long()
    return F.cross_entropy(logits, labels).item() if len(labels) else float("nan")


def calibration(logits_nc: torch.Tensor, labels_n: torch.Tensor, bins: int = BINS) -> Calibration:
    """Logits (N, C) float and labels (N,) → ``Calibration`` of the labelled rows.

    >>> sure = torch.tensor([[0.8, 0.2], [0.8, 0.2]]).log()  # twice class 0 with 0.8, and right once
    >>> round(calibration(sure, torch.tensor([0, 1])).ece, 6)
    0.3
    """
    known = labels_n >= 0
    logits, labels = logits_nc[known], labels_n[known].long()
    top = top_classes(logits, 1)[:, 0]
    confidence = logits.double().softmax(1).gather(1, top[:, None])[:, 0]
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    count = torch.bincount(place, minlength=bins)
    sure = torch.bincount(place, confidence, bins)
    hits = torch.bincount(place, (top == labels).double(), bins)
    ece = ((hits - sure).abs().sum() / max(len(labels), 1)).item()
    return Calibration(ece, sure / count, hits / count, count)


def agreement(student_nc: torch.Tensor, teacher_nc: torch.Tensor) -> float:
    """The share of rows whose top class is the same in both, of logits (N, C) each. Source: the "average top-1
    agreement" of Stanton et al., Does Knowledge Distillation Really Work?, arXiv 2106.05945."""
    _check_shapes(student_nc, teacher_nc)
    return (top_classes(student_nc, 1) == top_classes(teacher_nc, 1)).double().mean().item()


def kl(student_nc: torch.Tensor, teacher_nc: torch.Tensor, T: float = 1.0) -> float:
    """The mean over rows of KL(softmax(z_t/T) ‖ softmax(z_s/T)) in nats, of logits (N, C) each; without the factor T²
    of the loss ``kl``, so that it is a divergence whatever T is."""
    _check_shapes(student_nc, teacher_nc)
    return _mean(KL(), student_nc, teacher_nc, T)


def binary_agreement(student_nk: torch.Tensor, teacher_nk: torch.Tensor) -> float:
    """The share of answers, over rows and outputs, that are yes (a logit above 0) or no in both, of logits (N, K)
    each."""
    _check_shapes(student_nk, teacher_nk)
    return ((student_nk > 0) == (teacher_nk > 0)).double().mean().item()


def binary_kl(student_nk: torch.Tensor, teacher_nk: torch.Tensor, T: float = 1.0) -> float:
    """The mean over rows and outputs of the divergence between both's distributions over yes and no at ``T``, teacher
    first, in nats; logits (N, K) each; without the factor T² of the loss ``binary_kl``."""
    _check_shapes(student_nk, teacher_nk)
    return _mean(BinaryKL(), student_nk, teacher_nk, T)


def confusion(logits_nc: torch.Tensor, labels_n: torch.Tensor) -> torch.Tensor:
    """(C, C) int64: how many rows of each class (first axis) have each top class (second axis)."""
    known = labels_n >= 0
    classes = logits_nc.shape[1]
    places = labels_n[known].long() * classes + top_classes(logits_nc[known], 1)[:, 0]
    return torch.bincount(places, minlength=classes * classes).view(classes, classes)


def per_class(logits_nc: torch.Tensor, labels_n: torch.Tensor) -> PerClass:
    """Of each class how many rows it has and which share of them is recognized."""
    found = confusion(logits_nc, labels_n)
    count = found.sum(1)
    return PerClass(count, found.diagonal().double() / count)


def _mean(loss: KL | BinaryKL, student: torch.Tensor, teacher: torch.Tensor, T: float) -> float:
    """That of a loss that is a mean over rows times T², without that factor."""
    if not T > 0:
        raise UsageError(f"a temperature must be above 0, is {T}")
    total = 0.0
    for s, t in zip(student.split(CHUNK), teacher.split(CHUNK), strict=True):
        total += loss(s.double(), t.double(), T).item() / (T * T) * len(s)
    return total / len(student) if len(student) else float("nan")


def _check_shapes(student: torch.Tensor, teacher: torch.Tensor) -> None:
    if student.shape != teacher.shape:
        raise UsageError(
            f"the student's logits are {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}: only outputs for "
            "the same rows and classes can be compared"
        )
