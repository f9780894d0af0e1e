"""What a codec does to each loss: how far the loss and its gradient are from those of the teacher's own numbers.

Nothing is trained: the student's logits are those of one network, and only the teacher's side differs. So a difference
is the codec's alone. What a student makes of it is in the table of accuracies.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from benchmarks.codecs_measure import Kept
from softcache import registry
from softcache.losses._loss import loss_type
from softcache.losses._target import Target
from softcache.losses._terms import Term, parse_term

BATCH = 128
# Beside each loss by its defaults: a low temperature, and standardized logits.
VARIANTS = {"classes": ("kl:T=1", "kl:standardize=true"), "values": ()}


@dataclass(frozen=True)
class Seen:
    """The same keys: what the ``student`` and the ``teacher`` say (N, …) float32, and ``labels`` (N,) int64."""

    student: torch.Tensor
    teacher: torch.Tensor
    labels: torch.Tensor


def losses_of(kind: str) -> list[str]:
    """The specs of the losses that take outputs of this kind, ``classes`` or ``values``."""
    found = [name for name in registry.names("losses") if kind in loss_type(name).kinds]
    return sorted([*found, *VARIANTS[kind]])


def harm(kept: Kept, seen: Mapping[str, Seen]) -> dict[str, dict[str, float]]:
    """By loss, of batches of 128 keys: the mean of the loss's relative error (``value``), of its gradient's cosine with
    the true gradient (``cosine``) and of the gradient's relative error (``gradient``). ``seen``: spec of a loss → what
    it is given."""
    return {spec: _harm_of(parse_term(spec), kept, some) for spec, some in seen.items()}


def _harm_of(term: Term, kept: Kept, seen: Seen) -> dict[str, float]:
    parts: dict[str, list[float]] = {"value": [], "cosine": [], "gradient": []}
    batches = zip(*(some.split(BATCH) for some in (seen.student, seen.teacher, seen.labels)), strict=True)
    for student, teacher, labels in batches:
        value, gradient = _gradient(term, student, teacher, labels)
        found, other = _gradient(term, student, kept.target(kept.encode(teacher)), labels)
        parts["value"].append(abs(found - value) / max(abs(value), 1e-12))
        parts["cosine"].append(float(F.cosine_similarity(gradient, other, dim=0)))
        parts["gradient"].append(float((other - gradient).norm() / gradient.norm()))
    return {name: statistics.mean(values) for name, values in parts.items()}


def _gradient(term: Term, student: torch.Tensor, teacher: Target, labels: torch.Tensor) -> tuple[float, torch.Tensor]:
    """The loss, and its gradient for the student's outputs as one vector, in float64."""
    module = term.build(classes=student.shape[1], seed=0)
    given = student.clone().requires_grad_()
    loss = term(given, teacher, term.T_schedule().at(0, 1), labels, module=module)
    (gradient,) = torch.autograd.grad(loss, given)
    return loss.item(), gradient.double().flatten()


def harmed(losses: Mapping[str, Mapping[str, float]], limit: float) -> list[str]:
    """The specs of the losses whose gradient is off by more than ``limit`` of its length."""
    return [spec for spec, found in losses.items() if not found["gradient"] <= limit]


def through(vectors: torch.Tensor, targets: torch.Tensor, fitted: int) -> torch.Tensor:
    """Vectors (N, D) by the affine map to targets (N, E) that is best for the first ``fitted`` of them, (N, E)."""
    wide = torch.cat([vectors, torch.ones(len(vectors), 1)], 1).double()
    found = torch.linalg.lstsq(wide[:fitted], targets[:fitted].double()).solution
    return (wide @ found).float()
