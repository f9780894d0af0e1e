"""From ``--loss kl:weight=0.9,T=2`` to a term of the training loss.

``weight``, ``T`` and ``standardize`` are options of every loss; the others are the fields of its dataclass.
``weight`` and ``T`` may be schedules over the epochs. A ``T`` in a loss's own spec overrides the command's.

A loss is a frozen dataclass, called as ``loss(student, teacher, T, labels)`` with logits (B, C), a float and labels
(B,) int64 (-1 for none) or None, that returns a scalar, with the class attributes

- ``formula`` (one line), ``source``, ``default_weight`` (text of a schedule), ``default_T`` (None: it has none);
- ``needs_labels``: then it is a mean over labelled rows, 0 (with a graph) where a batch has none;
- ``through_softmax``: the teacher's logits enter only through ``softmax(z / T)``;
- ``zero_for_perfect``: 0 where both sides are equal;
- ``standardized_weight``, if its default weight is another one with ``standardize=true``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from softcache import registry
from softcache.errors import UsageError, nearest
from softcache.losses._schedule import Schedule
from softcache.losses._standardize import standardize

SHARED = ("weight", "T", "standardize")
ATTRIBUTES = ("needs_labels", "through_softmax", "default_T", "default_weight", "__call__")
STANDARDIZED_T = 2.0  # arXiv 2403.01427: after standardizing, the logits' scale is 1


@dataclass(frozen=True)
class Term:
    """One loss on logits with its weight and temperature.

    ``weight`` and ``T`` are None where the spec gives none: then the loss's own default weight holds, and the
    command's temperature, or where that isn't given either, the loss's own default.
    """

    name: str
    loss: Any
    weight: Schedule | None = None
    T: Schedule | None = None
    standardize: bool = False

    def __call__(
        self, student: torch.Tensor, teacher: torch.Tensor, T: float, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The loss, not yet weighted: logits (B, C) twice, labels (B,) int64 with -1 for none → scalar.

        ``teacher`` gets no gradient, whatever is handed in. Errors: ``UsageError`` where labels are needed
        and none are given.
        """
        if self.loss.needs_labels and labels is None:
            raise UsageError(f"loss {self.name!r} needs labels: choose one that needs none, such as kl")
        teacher = teacher.detach()
        if self.standardize:
            student, teacher = standardize(student), standardize(teacher)
        with registry.guarded(self.name, f"loss {self.name!r}"):
            result: torch.Tensor = self.loss(student, teacher, T, labels)
        if not isinstance(result, torch.Tensor) or result.ndim:
            found = f"shape {tuple(result.shape)}" if isinstance(result, torch.Tensor) else type(result).__name__
            raise UsageError(f"loss {self.name!r} must return a scalar tensor, returned {found}")
        return result

    @property
    def needs_labels(self) -> bool:
        return bool(self.loss.needs_labels)

    @property
    def through_softmax(self) -> bool:
        """Whether averaged probabilities can stand in for the teacher's logits: ``average_probabilities``."""
        return bool(self.loss.through_softmax) and not self.standardize

    def weight_schedule(self) -> Schedule:
        """Its own weight, else the loss's default, which may itself be a schedule (``dkd`` warms up)."""
        if self.weight is not None:
            return self.weight
        if self.standardize and hasattr(self.loss, "standardized_weight"):
            return Schedule.parse(self.loss.standardized_weight)
        return Schedule.parse(str(self.loss.default_weight))

    def T_schedule(self, given: Schedule | None = None) -> Schedule:
        """Its own temperature, else ``given`` (the command's ``--T``), else the loss's default."""
        own = self.T if self.T is not None else given
        if own is not None:
            return own
        if self.standardize:
            return Schedule.constant(STANDARDIZED_T)
        return Schedule.constant(self.loss.default_T if self.loss.default_T is not None else 1.0)

    def __str__(self) -> str:
        """The spec that gives this term again."""
        spec = registry.canonical(self.name, self.loss)
        parts = []
        if self.weight is not None:
            parts.append(f"weight={self.weight}")
        if self.T is not None:
            parts.append(f"T={self.T}")
        if self.standardize:
            parts.append("standardize=true")
        return spec + ("," if registry.split_component(spec)[1] else ":") * bool(parts) + ",".join(parts)


def parse_term(spec: str) -> Term:
    """``"kl:weight=0.9,T=8:2:linear"`` → a term.

    Errors: ``UsageError`` for an unknown loss or option (with the nearest names) and for impossible values.
    """
    name, rest = registry.split_component(spec)
    cls = registry.component("losses", name)
    registry.check_attributes(cls, ATTRIBUTES, f"loss {name!r}")
    options = registry.parse_options(rest, spec)
    fields = [f.name for f in dataclasses.fields(cls)]
    for key in options:
        if key not in (*fields, *SHARED):
            raise UsageError(f"loss {name!r} has no option {key!r}{nearest(key, (*fields, *SHARED))}")
    weight = _schedule(spec, "weight", options.pop("weight", None))
    if weight is not None and weight.bounds()[0] < 0:
        raise UsageError(f"{spec!r}: a weight can't be negative")
    T = _schedule(spec, "T", options.pop("T", None))
    if T is not None and T.bounds()[0] <= 0:
        raise UsageError(f"{spec!r}: T must be above 0")
    if T is not None and cls.default_T is None:  # type: ignore[attr-defined]
        raise UsageError(f"{spec!r}: loss {name!r} has no temperature: leave out T")
    standardized = registry.typed_options(_Flag, _only(options, "standardize"), f"loss {name!r}")
    flag = standardized.get("standardize", False)
    if flag and name == "hard":
        raise UsageError(f"{spec!r}: the teacher's argmax is the same standardized: leave out standardize")
    loss = cls(**registry.typed_options(cls, options, f"loss {name!r}"))
    return Term(name, loss, weight, T, flag)


def parse_terms(specs: Iterable[str]) -> list[Term]:
    """One term a spec, in their order; no spec at all gives ``kl``.

    Errors: ``UsageError`` as ``parse_term``, and for the same spec twice.
    """
    terms = [parse_term(spec) for spec in specs] or [parse_term("kl")]
    seen: set[str] = set()
    for term in terms:
        if str(term) in seen:
            raise UsageError(f"loss {str(term)!r} is given twice: raise its weight instead")
        seen.add(str(term))
    return terms


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
