"""What a student is trained towards: ``alpha·Σ wₖ·lossₖ + beta·CE(labels) + Σ hint weights · hint losses``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from softcache.losses._ensemble import average_probabilities
from softcache.losses._schedule import Schedule
from softcache.losses._terms import Term
from softcache.losses.hints._spec import HintTerm


@dataclass(frozen=True)
class LossValues:
    """Scalars on the device: ``total`` is what is minimized; ``soft`` and ``hard`` are unweighted by alpha, beta.

    ``hint`` is the weighted sum of the hint losses, ``hints`` each of them unweighted. In a stage on hints alone there
    is no ``soft`` and no ``hard``.
    """

    total: torch.Tensor
    soft: torch.Tensor | None
    hard: torch.Tensor | None
    hint: torch.Tensor
    hints: tuple[torch.Tensor, ...] = ()


def hard_loss(
    logits_bc: torch.Tensor,
    labels_b: torch.Tensor,
    smoothing: float = 0.0,
    mixed: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Cross-entropy with the labels, averaged over labelled rows; 0, with a graph, where a batch has none.

    ``labels_b`` (B,) int64, -1 where a row has no label. ``mixed``: the partners' labels (B,) and the weight of the
    own label (B,) float32, for views that mix two images; such a row counts when both are labelled.
    """
    scores = logits_bc.float() if logits_bc.dtype in (torch.float16, torch.bfloat16) else logits_bc
    labelled = labels_b >= 0

    def rows(labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(scores, labels.clamp_min(0), reduction="none", label_smoothing=smoothing)

    if mixed is None:
        losses = rows(labels_b)
    else:
        partner_b, weight_b = mixed
        labelled = labelled & (partner_b >= 0)
        losses = weight_b * rows(labels_b) + (1 - weight_b) * rows(partner_b)
    # Masked and divided on the device: indexing by a mask would make the host wait for it.
    return torch.where(labelled, losses, 0.0).sum() / labelled.sum().clamp_min(1)


@dataclass(frozen=True)
class Objective:
    """All terms of the training loss, with the knobs that may change over the epochs.

    ``terms``: losses on logits, empty for labels alone. ``beta`` is 1 - alpha where it isn't given. A ``T`` in a
    term's own spec overrides ``T``, and where neither is given a loss has its own. ``shares``: one a teacher, equal by
    default; ``combine``: whether their logits or, at each term's T, their probabilities are averaged.
    """

    terms: Sequence[Term]
    alpha: Schedule
    beta: Schedule | None
    T: Schedule | None
    epochs: int
    label_smoothing: float = 0.0
    hints: Sequence[HintTerm] = ()
    shares: Sequence[float] = ()
    combine: str = "logits"

    def weights(self, epoch: int) -> tuple[float, float]:
        """(alpha, beta) of an epoch."""
        alpha = self.alpha.at(epoch, self.epochs)
        return alpha, 1 - alpha if self.beta is None else self.beta.at(epoch, self.epochs)

    def temperatures(self, epoch: int) -> list[float]:
        """T of each term."""
        return [term.T_schedule(self.T).at(epoch, self.epochs) for term in self.terms]

    def soft(
        self, student_bc: torch.Tensor, teachers: Sequence[torch.Tensor], labels_b: torch.Tensor, epoch: int
    ) -> torch.Tensor:
        """``Σ wₖ·lossₖ`` at the teachers' logits, (B, C) each. ``labels_b``: those that may be used."""
        total = student_bc.new_zeros((), dtype=torch.float32)
        combined = self._combined(teachers) if self.combine == "logits" or len(teachers) == 1 else None
        for term, T in zip(self.terms, self.temperatures(epoch), strict=True):
            weight = term.weight_schedule().at(epoch, self.epochs)
            # A loss without a temperature has the probabilities themselves averaged.
            at = T if term.loss.default_T is not None else 1.0
            teacher = combined if combined is not None else average_probabilities(teachers, self._shares(teachers), at)
            total = total + weight * term(student_bc, teacher, T, labels_b)
        return total

    def hint(self, values: Sequence[torch.Tensor], epoch: int) -> torch.Tensor:
        """The weighted sum of the hint losses."""
        weights = [term.weight_schedule().at(epoch, self.epochs) for term in self.hints]
        return torch.stack([weight * value for weight, value in zip(weights, values, strict=True)]).sum()

    def hint_only(self, values: Sequence[torch.Tensor], epoch: int) -> LossValues:
        """The loss of a stage on hints alone."""
        total = self.hint(values, epoch)
        return LossValues(total, None, None, total, tuple(values))

    def _shares(self, teachers: Sequence[torch.Tensor]) -> Sequence[float]:
        return self.shares or [1.0] * len(teachers)

    def _combined(self, teachers: Sequence[torch.Tensor]) -> torch.Tensor:
        if len(teachers) == 1:
            return teachers[0]
        shares = self._shares(teachers)
        return torch.stack([z * (share / sum(shares)) for z, share in zip(teachers, shares, strict=True)]).sum(0)

    def __call__(
        self,
        student_bc: torch.Tensor,
        teachers: Sequence[torch.Tensor],
        labels_b: torch.Tensor,
        visible_b: torch.Tensor,
        mixed: tuple[torch.Tensor, torch.Tensor] | None,
        epoch: int,
        hints: Sequence[torch.Tensor] = (),
    ) -> LossValues:
        """``labels_b`` what the soft losses may know of the labels, ``visible_b`` what the hard term may (B,) int64;
        ``hints`` the hint losses' values."""
        alpha, beta = self.weights(epoch)
        zero = student_bc.new_zeros((), dtype=torch.float32)
        soft = self.soft(student_bc, teachers, labels_b, epoch) if self.terms else zero
        # Also where beta is 0, so that the curve can be looked at; its gradient is then multiplied away.
        hard = hard_loss(student_bc, visible_b, self.label_smoothing, mixed)
        hint = self.hint(hints, epoch) if self.hints else zero
        return LossValues(alpha * soft + beta * hard + hint, soft, hard, hint, tuple(hints))
