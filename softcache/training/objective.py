"""What a student is trained towards: ``alpha·Σ wₖ·lossₖ + beta·task loss + Σ hint weights · hint losses``."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import torch

from softcache.cache.schema import LOGITS
from softcache.losses._counted import Gather
from softcache.losses._ensemble import average_probabilities
from softcache.losses._schedule import Schedule
from softcache.losses._target import Leaders, Target, at_temperature
from softcache.losses._terms import Term
from softcache.losses.hints._spec import HintTerm
from softcache.ragged import Offsets
from softcache.training.loss_modules import LossModules
from softcache.training.task_loss import hard_loss

log = logging.getLogger(__name__)

DOMINANT = 0.99  # the share of the loss above which a term leaves the others without influence


@dataclass(frozen=True)
class LossValues:
    """Scalars on the device. ``total`` is minimized; ``soft`` and ``hard`` are not multiplied by alpha and beta.

    ``soft`` is the weighted sum of the losses on outputs, ``hint`` that of the hint losses. ``softs`` and ``hints`` are
    their single values, not weighted. In a stage on hints alone ``soft`` and ``hard`` are None; ``hard`` is also where
    no labels are learnt and the student's logits aren't read. ``shown``: of losses that have parameters, see
    ``LossModules.shown``.
    """

    total: torch.Tensor
    soft: torch.Tensor | None
    hard: torch.Tensor | None
    hint: torch.Tensor
    hints: tuple[torch.Tensor, ...] = ()
    softs: tuple[torch.Tensor, ...] = ()
    shown: Mapping[tuple[str, str], torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Shares:
    """What the value of each term of a batch is multiplied by, where the batch is a part of a larger one."""

    softs: tuple[float, ...]
    hard: float
    hints: tuple[float, ...]


@dataclass(frozen=True)
class TermValues:
    """The value of each term, not weighted: scalars. ``hard``: None where no labels are learnt."""

    softs: tuple[torch.Tensor, ...] = ()
    hard: torch.Tensor | None = None
    hints: tuple[torch.Tensor, ...] = ()

    def times(self, shares: Shares) -> TermValues:
        """``shares``: also of terms that this stage doesn't have."""

        def each(values: Sequence[torch.Tensor], of: Sequence[float]) -> tuple[torch.Tensor, ...]:
            return tuple(value * share for value, share in zip(values, of, strict=True)) if values else ()

        hard = None if self.hard is None else self.hard * shares.hard
        return TermValues(each(self.softs, shares.softs), hard, each(self.hints, shares.hints))


@dataclass(frozen=True)
class Objective:
    """All terms of the training loss, with weights and temperatures that may change over the epochs.

    ``terms``: losses on outputs, empty for labels alone. ``beta`` None: 1 - alpha. A ``T`` in the spec of a term
    overrides ``T``; without either the default of the loss holds. ``shares``: a weight for each teacher, by default 1.
    ``combine``: "logits" averages the teachers' outputs, "probs" their probabilities at each term's T. ``binary``:
    the outputs whose probabilities are a sigmoid each. ``labels``: whether the labels are learnt, or at least looked
    at. ``modules``: what losses on outputs train beside the student, None where none of them has parameters.
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
    binary: frozenset[str] = frozenset()
    labels: bool = True
    modules: LossModules | None = None

    @property
    def outputs(self) -> list[str]:
        """The student's outputs that are read."""
        names = [LOGITS] if self.labels else []
        return list(dict.fromkeys([*names, *(term.of for term in self.terms)]))

    def weights(self, epoch: int) -> tuple[float, float]:
        """(alpha, beta) of an epoch."""
        alpha = self.alpha.at(epoch, self.epochs)
        return alpha, 1 - alpha if self.beta is None else self.beta.at(epoch, self.epochs)

    def temperatures(self, epoch: int) -> list[float]:
        """T of each term."""
        return [term.T_schedule(self.T).at(epoch, self.epochs) for term in self.terms]

    def numbers(self, epoch: int) -> tuple[float, ...]:
        """All weights and temperatures of an epoch."""
        schedules = [term.weight_schedule() for term in self.terms] + [term.weight_schedule() for term in self.hints]
        weights = [schedule.at(epoch, self.epochs) for schedule in schedules]
        return (*self.weights(epoch), *self.temperatures(epoch), *weights)

    def begin_epoch(self, epoch: int) -> None:
        """Called before each epoch."""
        if self.modules is not None:
            self.modules.begin_epoch(epoch, self.epochs)

    def soft_values(
        self,
        student: Mapping[str, torch.Tensor],
        teachers: Mapping[str, Sequence[Target]],
        labels_b: torch.Tensor,
        epoch: int,
        offsets: Offsets = MappingProxyType({}),
        gather: Gather | None = None,
    ) -> list[torch.Tensor]:
        """The value of each term, not weighted. ``student``: outputs (B, …) by name; ``teachers``: one a teacher of
        each. ``labels_b``: (B,) int64, -1 for a sample without a label that may be used. ``offsets``: of those whose
        rows have lengths of their own, where each begins; they are then (P, …) on both sides, the rows' own places.
        ``gather``: as ``Term`` takes it."""
        values = []
        combined: dict[tuple[str, float | None], Target] = {}
        for number, (term, T) in enumerate(zip(self.terms, self.temperatures(epoch), strict=True)):
            said, teacher = teachers[term.of], teachers[term.of][0]
            if self.combine == "probs" and len(said) > 1:
                # For a loss without a temperature the probabilities themselves are averaged.
                at = T if term.loss.default_T is not None else 1.0
                kind = "binary" if term.of in self.binary else "classes"
                logits = [at_temperature(one, at) for one in said]
                teacher = average_probabilities(logits, self._shares(said), at, kind=kind)
            elif len(said) > 1:
                # Of leaders and a tail there are other logits for each temperature.
                leading = any(isinstance(one, Leaders) for one in said)
                key = (term.of, term.loss.target_T(T) if leading else None)
                if key not in combined:
                    combined[key] = self._mean([at_temperature(one, term.loss.target_T(T)) for one in said])
                teacher = combined[key]
            module = self.modules.of(number) if self.modules is not None else None
            values.append(term(student[term.of], teacher, T, labels_b, offsets.get(term.of), module, gather))
        return values

    def soft(self, values: Sequence[torch.Tensor], epoch: int) -> torch.Tensor:
        """The weighted sum of the losses on outputs."""
        total = torch.zeros_like(values[0], dtype=torch.float32)
        for term, value in zip(self.terms, values, strict=True):
            total = total + term.weight_schedule().at(epoch, self.epochs) * value
        return total

    def hint(self, values: Sequence[torch.Tensor], epoch: int) -> torch.Tensor:
        """The weighted sum of the hint losses."""
        weights = [term.weight_schedule().at(epoch, self.epochs) for term in self.hints]
        return torch.stack([weight * value for weight, value in zip(weights, values, strict=True)]).sum()

    def _shares(self, teachers: Sequence[Target]) -> Sequence[float]:
        return self.shares or [1.0] * len(teachers)

    def _mean(self, teachers: Sequence[torch.Tensor]) -> torch.Tensor:
        shares = self._shares(teachers)
        return torch.stack([z * (share / sum(shares)) for z, share in zip(teachers, shares, strict=True)]).sum(0)

    def values(
        self,
        student: Mapping[str, torch.Tensor],
        teachers: Mapping[str, Sequence[Target]],
        labels_b: torch.Tensor,
        visible: torch.Tensor,
        mixed: tuple[torch.Tensor, torch.Tensor] | None,
        epoch: int,
        hints: Sequence[torch.Tensor] = (),
        offsets: Offsets = MappingProxyType({}),
        gather: Gather | None = None,
    ) -> TermValues:
        """The values of all terms for a batch.

        ``student``, ``teachers``, ``offsets``, ``gather``: as in ``soft_values``. ``labels_b`` (B,) int64: labels that
        the losses on outputs may use, else -1. ``visible``, ``mixed``: labels as ``hard_loss`` takes them. ``hints``:
        the values of the hint losses.
        """
        softs = tuple(self.soft_values(student, teachers, labels_b, epoch, offsets, gather))
        # Also computed where beta is 0, for the metrics; its gradient is then multiplied by 0.
        hard = hard_loss(student[LOGITS], visible, self.label_smoothing, mixed) if self.labels else None
        return TermValues(softs, hard, tuple(hints))

    def total(self, values: TermValues, epoch: int, *, hints_alone: bool = False) -> LossValues:
        """The loss that is minimized. ``hints_alone``: of a stage on hints alone."""
        softs, hard, hints = values.softs, values.hard, values.hints
        hint = self.hint(hints, epoch) if self.hints else _any_of(values).new_zeros((), dtype=torch.float32)
        if hints_alone:
            return LossValues(hint, None, None, hint, hints)
        alpha, beta = self.weights(epoch)
        soft = self.soft(softs, epoch) if softs else _any_of(values).new_zeros((), dtype=torch.float32)
        total = alpha * soft + hint if hard is None else alpha * soft + beta * hard + hint
        shown = self.modules.shown() if self.modules is not None else {}
        return LossValues(total, soft, hard, hint, hints, softs, shown)

    def warn_of_dominance(self, values: LossValues, epoch: int) -> None:
        """Logs a warning where one of several terms is more than ``DOMINANT`` of the loss. Waits for the device once.

        Terms are compared by their absolute values, because a loss such as ``vid`` may be negative.
        """
        alpha, beta = self.weights(epoch)
        terms = []
        if values.softs:  # a stage on hints alone has none
            terms = [(f"loss {term}", "weight=", alpha, term.weight_schedule()) for term in self.terms]
        terms += [(f"hint loss {term}", "weight=", 1.0, term.weight_schedule()) for term in self.hints]
        scalars = [*values.softs, *values.hints]
        if values.hard is not None:
            terms.append(("the hard-label loss", "--beta ", 1.0, Schedule.constant(beta)))
            scalars.append(values.hard)
        numbers = torch.stack([value.detach().float() for value in scalars]).tolist()
        sizes = [
            abs(factor * weight.at(epoch, self.epochs) * number)
            for (_, _, factor, weight), number in zip(terms, numbers, strict=True)
        ]
        largest, total = max(sizes), sum(sizes)
        rest = total - largest
        if not DOMINANT * total < largest < total < math.inf:
            return
        name, option, _, weight = terms[sizes.index(largest)]
        used = weight.at(epoch, self.epochs)
        log.warning(
            f"{name} is {100 * largest / total:.2f} % of the loss at the first step: {largest:,.4g} beside {rest:,.4g} "
            f"for all other terms. Lower its weight, {used:.4g}: with "
            f"{option}{used * rest / largest:.3g} it would equal the others"
        )


def _any_of(values: TermValues) -> torch.Tensor:
    """One of them, for its device."""
    found = values.hard if values.hard is not None else (*values.softs, *values.hints)[0]
    return found.detach()
