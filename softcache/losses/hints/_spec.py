"""From ``--hint fitnet:teacher=layer3,student=layer2,weight=100`` to a term of the training loss.

``teacher``, ``student`` and ``weight`` are options of every hint loss. The others are the fields of its dataclass,
whose contract is ``HintLoss``.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from softcache import registry
from softcache.errors import UsageError, nearest
from softcache.losses._contract import Need
from softcache.losses._counted import ROWS, Counted
from softcache.losses._schedule import Schedule
from softcache.losses.hints._hint_loss import HintLoss, hint_loss_type
from softcache.losses.hints._shapes import Shape

SHARED = ("teacher", "student", "weight")
FORM = "{name}:teacher=layer3,student=layer3"


@dataclass(frozen=True)
class HintTerm:
    """One loss on activations, the layers of teacher and student that it compares (as many of each), and its weight.

    ``weight`` is None where the spec gives none: then the default weight of the loss holds.
    """

    name: str
    loss: HintLoss
    teacher: tuple[str, ...]
    student: tuple[str, ...]
    weight: Schedule | None = None

    @property
    def needs(self) -> frozenset[Need]:
        return self.loss.needs

    def counted(self, column: str | None, *, of_rows: bool = False) -> Counted:
        """What it is a mean over, or relates. ``column``: that of the teacher's layer where rows have different numbers
        of places. ``of_rows``: whether rows have one place or none there, which is a whole activation."""
        if column is not None and self.loss.of_lengths == "places" and not of_rows:
            return Counted("places", column)
        if "labels" in self.needs and self.loss.scope == "samples":
            return Counted("labels", column)
        return ROWS if column is None else Counted("filled", column)

    @property
    def replaces_logits(self) -> bool:
        return self.loss.replaces_logits

    def weight_schedule(self) -> Schedule:
        """Its own weight, or the default weight of the loss."""
        return self.weight if self.weight is not None else Schedule.parse(self.loss.default_weight)

    def build(
        self,
        student_shapes: Sequence[Shape],
        teacher_shapes: Sequence[Shape],
        *,
        row_count: int,
        classes: int,
        seed: int,
        row_labels: torch.Tensor | None = None,
        teacher_classifier: nn.Linear | None = None,
    ) -> HintModule:
        """The module that is trained beside the student, on the CPU in float32.

        student_shapes, teacher_shapes: shapes of the activations without the batch, one a layer. row_count: the number
        of rows that are trained on. seed: of the initial parameters. row_labels (row_count,) int64 and
        teacher_classifier are used by losses that need them.
        Errors: ``UsageError`` for shapes that the loss can't use, and where something that it needs is None.
        """
        given: dict[str, Any] = {"row_count": row_count, "classes": classes, "seed": seed}
        wanted: dict[Need, Any] = {"row labels": row_labels, "teacher classifier": teacher_classifier}
        for need, value in wanted.items():
            if need not in self.needs:
                continue
            if value is None:
                raise UsageError(f"hint loss {self.name!r} needs the {need}, which this training doesn't have")
            given[need.replace(" ", "_")] = value
        students, teachers = [tuple(s) for s in student_shapes], [tuple(t) for t in teacher_shapes]
        with registry.guarded(self.name, f"hint loss {self.name!r}"):
            if self.loss.several:
                built = [self.loss.build(students, teachers, **given)]
            else:
                built = [self.loss.build(s, t, **given) for s, t in zip(students, teachers, strict=True)]
        if not all(isinstance(module, nn.Module) for module in built):
            raise UsageError(f"hint loss {self.name!r}: build must return a torch.nn.Module, returned {built[0]!r:.60}")
        return HintModule(built, self.loss)

    def value(
        self,
        module: HintModule,
        student: Sequence[torch.Tensor],
        teacher: Sequence[torch.Tensor],
        *,
        positions: torch.Tensor,
        labels: torch.Tensor,
    ) -> torch.Tensor:
        """The value of ``module``, which ``build`` made, as a scalar; arguments as in ``HintModule.forward``.

        Errors: ``UsageError`` where a loss of the user's own fails or returns something else.
        """
        with registry.guarded(self.name, f"hint loss {self.name!r}"):
            value = module(student, teacher, positions=positions, labels=labels)
        if value.ndim:
            raise UsageError(f"hint loss {self.name!r} must return a scalar, returned shape {tuple(value.shape)}")
        return typing.cast(torch.Tensor, value)

    def __str__(self) -> str:
        """The spec of this term, which ``parse_hint`` reads."""
        _, options = registry.split_component(registry.canonical(self.name, self.loss))
        parts = [f"teacher={'/'.join(self.teacher)}", f"student={'/'.join(self.student)}"]
        if self.weight is not None:
            parts.append(f"weight={self.weight}")
        return f"{self.name}:" + ",".join([*parts, *filter(None, [options])])


class HintModule(nn.Module):
    """What ``HintTerm.build`` returns: the loss of all layers of a term, not weighted.

    ``by_layer``: a module for each pair of layers, or one for all of them where the loss takes several.
    """

    def __init__(self, by_layer: Sequence[nn.Module], loss: HintLoss) -> None:
        super().__init__()
        self.by_layer = nn.ModuleList(by_layer)
        self.loss = loss

    def forward(
        self,
        student: Sequence[torch.Tensor],
        teacher: Sequence[torch.Tensor],
        *,
        positions: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Activations, batch first, one a layer; positions and labels (B,) int64, see ``Need`` → a scalar."""
        teacher = [t.detach() for t in teacher]
        wanted: dict[Need, torch.Tensor | None] = {"positions": positions, "labels": labels}
        given = {str(need): value for need, value in wanted.items() if need in self.loss.needs}
        if self.loss.several:
            result: torch.Tensor = self.by_layer[0](list(student), teacher, **given)
            return result
        triples = zip(self.by_layer, student, teacher, strict=True)
        return torch.stack([module(s, t, **given) for module, s, t in triples]).sum()


def parse_hint(spec: str) -> HintTerm:
    """The term of a spec; several layers, from shallow to deep, are separated by ``/``.

    Errors: ``UsageError`` for an unknown loss or option (with the nearest names), a missing layer, and values that are
    not allowed.

    >>> term = parse_hint("fitnet:teacher=layer1/layer2,student=a/b,weight=4:1:linear")
    >>> term.teacher, term.student
    (('layer1', 'layer2'), ('a', 'b'))
    >>> term.weight_schedule().at(0, epochs=10)
    4.0
    """
    name, rest = registry.split_component(spec)
    cls = hint_loss_type(name)
    options = registry.parse_options(rest, spec)
    known = (*SHARED, *(f.name for f in dataclasses.fields(cls)))
    for key in options:
        if key not in known:
            raise UsageError(f"hint loss {name!r} has no option {key!r}{nearest(key, known)}")
    teacher, student = _layers(options.pop("teacher", "")), _layers(options.pop("student", ""))
    if not teacher or not student:
        absent = "the student's layer" if teacher else "the teacher's layer" if student else "both layers"
        raise UsageError(f"{spec!r} lacks {absent}: write --hint {FORM.format(name=name)}")
    if len(teacher) != len(student):
        raise UsageError(
            f"{spec!r} names {len(teacher)} of the teacher's layers and {len(student)} of the student's: "
            "name as many of each"
        )
    weight = None
    if "weight" in options:
        weight = Schedule.parse(options.pop("weight"))
        if weight.bounds()[0] < 0:
            raise UsageError(f"{spec!r}: a weight can't be negative")
    of_rows = next((layer for layer in student if ":rows=" in layer), None)
    if of_rows is not None:
        raise UsageError(
            f"{spec!r}: rows= says for which rows a layer of the teacher is kept, and is not for the student's: write "
            f"student={of_rows.partition(':rows=')[0]}"
        )
    loss = cls(**registry.typed_options(cls, options, f"hint loss {name!r}"))
    return HintTerm(name, loss, teacher, student, weight)


def parse_hints(specs: Iterable[str]) -> list[HintTerm]:
    """The terms of several specs, in order.

    Errors: ``UsageError`` as ``parse_hint``, for a spec that is given twice, and for two that replace the logits.
    """
    terms: list[HintTerm] = []
    for spec in specs:
        term = parse_hint(spec)
        if str(term) in map(str, terms):
            raise UsageError(f"hint {str(term)!r} is given twice: raise its weight instead")
        terms.append(term)
    replacing = [term for term in terms if term.replaces_logits]
    if len(replacing) > 1 or any(len(term.teacher) > 1 for term in replacing):
        name = replacing[0].name
        raise UsageError(f"hint loss {name!r} replaces the student's logits: give it once, with one layer")
    return terms


def _layers(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split("/") if part.strip())
