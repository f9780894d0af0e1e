"""From ``--loss kl:weight=0.9,T=2`` to a term of the training loss.

``of``, ``weight``, ``T`` and ``standardize`` are options of every loss. The others are the fields of its dataclass,
whose contract is ``Loss``. ``weight`` and ``T`` may be schedules over the epochs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from softcache import registry
from softcache.errors import UsageError, nearest
from softcache.losses._contract import Kind, Need
from softcache.losses._counted import ROWS, Counted, Gather
from softcache.losses._loss import Loss, loss_type
from softcache.losses._module import LossModule
from softcache.losses._schedule import Schedule
from softcache.losses._standardize import standardize
from softcache.losses._target import Target, at_temperature
from softcache.ragged import Int64, row_means

SHARED = ("of", "weight", "T", "standardize")
STANDARDIZED_T = 2.0  # arXiv 2403.01427: after standardizing, the logits' scale is 1
STANDARDIZED_BETA = 0.1  # as in the same paper's code


@dataclass(frozen=True)
class Term:
    """One loss with the output that it is of, its weight and its temperature.

    ``of``: the name of an output of teacher and student. ``weight`` and ``T`` are None where the spec gives none. Then
    the default weight of the loss holds, and ``--T`` or, without it, the default temperature of the loss.
    """

    name: str
    loss: Loss
    weight: Schedule | None = None
    T: Schedule | None = None
    standardize: bool = False
    of: str = "logits"

    def __call__(
        self,
        student: torch.Tensor,
        teacher: Target,
        T: float,
        labels: torch.Tensor | None = None,
        offset: Int64 | None = None,
        module: LossModule | None = None,
        gather: Gather | None = None,
    ) -> torch.Tensor:
        """Outputs (B, …, C) of student and teacher, labels (B,) int64 with -1 for none → a scalar, not weighted.

        Positions, the axes between, count as samples; a loss that needs vectors gets the mean over them. ``offset``:
        where rows have lengths of their own (B + 1,), where each begins in outputs (P, …, C) whose places lie end to
        end: these count as samples too, and the mean is over those of a row; rows that have none are left out, and
        where no row has any, the loss is 0 with a graph. ``teacher`` gets no gradient; of ``Leaders`` the loss is given
        the logits for its temperature. ``module``: what ``build`` made. ``gather``: where other ranks have parts of
        the batch, for a loss whose scope is the batch.

        Errors: ``UsageError`` where labels are needed and none are given.
        """
        if "labels" in self.needs and labels is None:
            raise UsageError(f"loss {self.name!r} needs labels: choose one that needs none, such as kl")
        teacher = at_temperature(teacher, self.loss.target_T(T))
        alone, vectors = student, "vectors" in self.needs
        if vectors and offset is not None:
            student, teacher = row_means(student, offset), row_means(teacher, offset)
        teacher = teacher.detach()
        if gather is not None and self.loss.scope == "batch":
            counted = self.counted(ragged=offset is not None)
            student, teacher = gather(student, counted), gather(teacher, counted)
            labels = gather(labels, counted) if labels is not None and counted == ROWS else labels
        if offset is not None and not len(student):
            return student.sum() * 0 + alone.sum() * 0
        flat = _mean_over_positions if vectors else _positions_as_samples
        student, teacher = flat(student), flat(teacher)
        if self.standardize:
            student, teacher = standardize(student), standardize(teacher)
        with registry.guarded(self.name, f"loss {self.name!r}"):
            result: torch.Tensor = (self.loss if module is None else module)(student, teacher, T, labels)
        if not isinstance(result, torch.Tensor) or result.ndim:
            found = f"shape {tuple(result.shape)}" if isinstance(result, torch.Tensor) else type(result).__name__
            raise UsageError(f"loss {self.name!r} must return a scalar tensor, returned {found}")
        return result

    def build(self, *, classes: int, seed: int) -> LossModule | None:
        """The module that is trained beside the student, see ``Loss.build``.

        Errors: ``UsageError`` where a loss of the user's own gives something else.
        """
        with registry.guarded(self.name, f"loss {self.name!r}"):
            module = self.loss.build(classes=classes, seed=seed)
        if module is not None and not isinstance(module, LossModule):
            raise UsageError(
                f"loss {self.name!r}: build must return a softcache.losses.LossModule or None, returned {module!r:.60}"
            )
        return module

    @property
    def needs(self) -> frozenset[Need]:
        return self.loss.needs

    def counted(self, *, ragged: bool) -> Counted:
        """What it is a mean over, or relates. ``ragged``: whether the rows of its output have lengths of their own."""
        if ragged:
            return Counted("filled" if "vectors" in self.needs else "places", self.of)
        return Counted("labels") if "labels" in self.needs and self.loss.scope == "samples" else ROWS

    @property
    def kinds(self) -> frozenset[Kind]:
        """Of the outputs that it takes; what is standardized are the logits of a softmax."""
        return self.loss.kinds & {"classes"} if self.standardize else self.loss.kinds

    @property
    def least_classes(self) -> int:
        """The smallest number of classes for which it says anything; one logit has no deviation to divide by."""
        return max(2, self.loss.least_classes) if self.standardize else self.loss.least_classes

    @property
    def through_softmax(self) -> bool:
        """Whether pseudo-logits of ``average_probabilities`` can take the place of the teacher's logits."""
        return self.loss.through_softmax and not self.standardize

    def weight_schedule(self) -> Schedule:
        """Its own weight, or the default weight of the loss, which may be a schedule (``dkd`` warms up)."""
        if self.weight is not None:
            return self.weight
        return Schedule.parse(self._standardized_weight or self.loss.default_weight)

    @property
    def default_alpha(self) -> float:
        """The weight of the losses on logits where nobody says; that of a standardized loss is in its own weight."""
        return 1.0 if self._standardized_weight is not None else self.loss.default_alpha

    @property
    def default_beta(self) -> float:
        """The weight of the hard-label loss where nobody says."""
        return STANDARDIZED_BETA if self._standardized_weight is not None else self.loss.default_beta

    @property
    def _standardized_weight(self) -> str | None:
        return self.loss.standardized_weight if self.standardize else None

    def T_schedule(self, given: Schedule | None = None) -> Schedule:
        """Its own temperature, or ``given`` (``--T``), or the default temperature of the loss."""
        own = self.T if self.T is not None else given
        if own is not None:
            return own
        if self.standardize:
            return Schedule.constant(STANDARDIZED_T)
        return Schedule.constant(self.loss.default_T if self.loss.default_T is not None else 1.0)

    def __str__(self) -> str:
        """The spec of this term, which ``parse_term`` reads."""
        spec = registry.canonical(self.name, self.loss)
        parts = []
        if self.of != Term.of:
            parts.append(f"of={self.of}")
        if self.weight is not None:
            parts.append(f"weight={self.weight}")
        if self.T is not None:
            parts.append(f"T={self.T}")
        if self.standardize:
            parts.append("standardize=true")
        return spec + ("," if registry.split_component(spec)[1] else ":") * bool(parts) + ",".join(parts)


def refuse_few_classes(terms: Iterable[Term], classes: int, *, labels_alone: bool = False) -> None:
    """Errors: ``UsageError`` where a training would learn nothing, or what isn't a number, because there are so few
    classes. ``labels_alone``: whether the cross-entropy with the labels is all that it learns from.

    >>> refuse_few_classes([parse_term("mse")], 1)
    """
    found = "1 class" if classes == 1 else f"{classes} classes"
    if labels_alone and classes < 2:
        raise UsageError(f"the data have {found}: the cross-entropy with the labels is 0 whatever a network answers")
    for term in terms:
        if classes < term.least_classes:
            raise UsageError(
                f"loss {str(term)!r} needs at least {term.least_classes} classes, the data have {found}: the softmax "
                "over one class is always 1; loss 'mse' compares the logits themselves"
            )


def refuse_kind(term: Term, kind: str, owner: str) -> None:
    """Errors: ``UsageError`` where the output that a loss is of isn't of a kind that it takes, with those that would
    do. ``owner``: what has the output, for the message.

    >>> refuse_kind(parse_term("mse:of=embedding"), "values", "cache")
    """
    if kind in term.kinds:
        return
    if kind in term.loss.kinds:
        raise UsageError(
            f"loss {str(term)!r}: {term.of!r} is of kind {kind}, of which nothing is standardized: leave "
            "standardize out"
        )
    fitting = [name for name in registry.names("losses") if kind in loss_type(name).kinds]
    raise UsageError(
        f"loss {str(term)!r} takes outputs of kind {', '.join(sorted(term.kinds))}, and {term.of!r} of {owner} is of "
        f"kind {kind}: losses that take it are {', '.join(fitting)}"
    )


def refuse_labels_of_places(term: Term, shape: Sequence[int], *, ragged: bool) -> None:
    """Errors: ``UsageError`` for a loss that needs one label a sample, of an output that has several vectors for each.
    ``shape``: of one sample's output or, where rows have lengths of their own (``ragged``), of one place's."""
    if "labels" in term.needs and (ragged or len(shape) > 1):
        raise UsageError(
            f"loss {str(term)!r} needs a label for each vector of {term.of!r}, of which a row has several, and labels "
            "are of rows: choose one that needs none, such as kl"
        )


def refuse_shapes(term: Term, student: Sequence[int], teacher: Sequence[int]) -> None:
    """Errors: ``UsageError`` for shapes of one sample's output or one place's, of student and teacher, that a loss
    can't compare."""
    student, teacher = tuple(student), tuple(teacher)
    if "vectors" in term.needs:
        return
    if (student or (1,)) != (teacher or (1,)):
        raise UsageError(
            f"loss {str(term)!r}: the student's {term.of!r} has shape {student} for a sample, the teacher's {teacher}: "
            "give the student an output of that shape, or take a loss that relates samples, such as rkd"
        )


def parse_term(spec: str) -> Term:
    """The term of a spec.

    Errors: ``UsageError`` for an unknown loss or option (with the nearest names) and for values that are not allowed.

    >>> term = parse_term("kl:weight=0.9,T=8:2:linear")
    >>> [term.T_schedule().at(epoch, epochs=3) for epoch in range(3)]
    [8.0, 5.0, 2.0]
    """
    name, rest = registry.split_component(spec)
    cls = loss_type(name)
    options = registry.parse_options(rest, spec)
    fields = [f.name for f in dataclasses.fields(cls)]
    for key in options:
        if key not in (*fields, *SHARED):
            raise UsageError(f"loss {name!r} has no option {key!r}{nearest(key, (*fields, *SHARED))}")
    of = options.pop("of", Term.of)
    if not of:
        raise UsageError(f"{spec!r}: of names an output of the teacher, such as of=embedding")
    weight = _schedule(spec, "weight", options.pop("weight", None))
    if weight is not None and weight.bounds()[0] < 0:
        raise UsageError(f"{spec!r}: a weight can't be negative")
    T = _schedule(spec, "T", options.pop("T", None))
    if T is not None and T.bounds()[0] <= 0:
        raise UsageError(f"{spec!r}: T must be above 0")
    if T is not None and cls.default_T is None:
        raise UsageError(f"{spec!r}: loss {name!r} has no temperature: leave out T")
    standardized = registry.typed_options(_Flag, _only(options, "standardize"), f"loss {name!r}")
    flag = standardized.get("standardize", False)
    if flag and not cls.standardizes:
        raise UsageError(f"{spec!r}: standardized logits give the same loss {name!r}: leave out standardize")
    loss = cls(**registry.typed_options(cls, options, f"loss {name!r}"))
    return Term(name, loss, weight, T, flag, of)


def parse_terms(specs: Iterable[str]) -> list[Term]:
    """The terms of several specs, in order.

    Errors: ``UsageError`` as ``parse_term``, and for a spec that is given twice.
    """
    terms = [parse_term(spec) for spec in specs]
    seen: set[str] = set()
    for term in terms:
        if str(term) in seen:
            raise UsageError(f"loss {str(term)!r} is given twice: raise its weight instead")
        seen.add(str(term))
    return terms


def _positions_as_samples(x: torch.Tensor) -> torch.Tensor:
    """(B, …, C) → (B · positions, C); (B,) → (B, 1)."""
    return x.unsqueeze(1) if x.ndim == 1 else x.flatten(0, -2)


def _mean_over_positions(x: torch.Tensor) -> torch.Tensor:
    """(B, …, D) → (B, D); (B,) → (B, 1)."""
    return x.unsqueeze(1) if x.ndim == 1 else x.flatten(1, -2).mean(1) if x.ndim > 2 else x


@dataclass(frozen=True)
class _Flag:
    standardize: bool = False


def _only(options: dict[str, str], key: str) -> dict[str, str]:
    return {key: options.pop(key)} if key in options else {}


def _schedule(spec: str, key: str, text: str | None) -> Schedule | None:
    if text is None:
        return None
    try:
        return Schedule.parse(text)
    except UsageError as error:
        raise UsageError(f"{spec!r}: {key}: {error}") from None
