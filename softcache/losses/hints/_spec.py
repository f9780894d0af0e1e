"""From ``--hint fitnet:teacher=layer3,student=layer2,weight=100`` to a term of the training loss.

``teacher``, ``student`` and ``weight`` are options of every hint loss; the others are fields of its
dataclass. A hint loss is a frozen dataclass with the class attributes ``formula``, ``source``, ``needs``,
``default_weight`` and ``build(student_shape, teacher_shape, *, rows, classes, seed) -> nn.Module``. It may
have also:

- ``several = True``: ``build`` and the module take lists, one entry a layer (else each pair of layers gets a
  module of its own, and their losses are summed);
- ``bank_bytes(rows)``: memory that ``build`` will take, to be said before;
- ``extras = ("row_labels",)``: what more ``build`` needs by name (``row_labels``, ``teacher_classifier``);
- ``zero_for_perfect = True``: 0 where student and teacher have equal activations;
- ``replaces_logits = True``: the student answers through the module's ``projector`` and the teacher's classifier,
  on maps pooled to the module's ``size``.
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
from softcache.losses._schedule import Schedule
from softcache.losses.hints._shapes import Shape

ATTRIBUTES = ("needs", "default_weight", "build")
SHARED = ("teacher", "student", "weight")
FORM = "{name}:teacher=layer3,student=layer3"


@dataclass(frozen=True)
class HintTerm:
    """One loss on activations: which layers of teacher and student (as many of each), and its weight."""

    name: str
    loss: Any
    teacher: tuple[str, ...]
    student: tuple[str, ...]
    weight: Schedule | None = None

    @property
    def extras(self) -> tuple[str, ...]:
        return tuple(getattr(self.loss, "extras", ()))

    @property
    def replaces_logits(self) -> bool:
        return bool(getattr(self.loss, "replaces_logits", False))

    def weight_schedule(self) -> Schedule:
        """Its own weight, else the loss's default."""
        return self.weight if self.weight is not None else Schedule.parse(str(self.loss.default_weight))

    def build(
        self,
        student_shapes: Sequence[Shape],
        teacher_shapes: Sequence[Shape],
        *,
        rows: int,
        classes: int,
        seed: int,
        **extras: Any,
    ) -> HintModule:
        """The module to train with the student, on the CPU in float32; shapes without batch, one a layer.

        ``rows``: of the dataset; ``extras``: at least those in ``self.extras``, others are ignored.
        Errors: ``UsageError`` for shapes or extras that the loss can't use.
        """
        missing = [name for name in self.extras if extras.get(name) is None]
        if missing:
            what = " and ".join(name.replace("_", " ") for name in missing)
            raise UsageError(f"hint loss {self.name!r} needs {what}, which this run has not")
        given = {"rows": rows, "classes": classes, "seed": seed, **{k: extras[k] for k in self.extras}}
        students, teachers = [tuple(s) for s in student_shapes], [tuple(t) for t in teacher_shapes]
        several = bool(getattr(self.loss, "several", False))
        with registry.guarded(self.name, f"hint loss {self.name!r}"):
            if several:
                parts = [self.loss.build(students, teachers, **given)]
            else:
                parts = [self.loss.build(s, t, **given) for s, t in zip(students, teachers, strict=True)]
        if not all(isinstance(part, nn.Module) for part in parts):
            raise UsageError(f"hint loss {self.name!r}: build must return a torch.nn.Module, returned {parts[0]!r:.60}")
        return HintModule(parts, several=several)

    def value(
        self,
        module: HintModule,
        student: Sequence[torch.Tensor],
        teacher: Sequence[torch.Tensor],
        *,
        indices: torch.Tensor,
        labels: torch.Tensor,
    ) -> torch.Tensor:
        """The loss by ``module``, which ``build`` made, as a scalar; arguments as ``HintModule.forward`` has them.

        Errors: ``UsageError`` where a loss of a user's own fails or returns something else.
        """
        with registry.guarded(self.name, f"hint loss {self.name!r}"):
            value = module(student, teacher, indices=indices, labels=labels)
        if value.ndim:
            raise UsageError(f"hint loss {self.name!r} must return a scalar, returned shape {tuple(value.shape)}")
        return typing.cast(torch.Tensor, value)

    def __str__(self) -> str:
        """The spec that gives this term again."""
        _, options = registry.split_component(registry.canonical(self.name, self.loss))
        parts = [f"teacher={'/'.join(self.teacher)}", f"student={'/'.join(self.student)}"]
        if self.weight is not None:
            parts.append(f"weight={self.weight}")
        return f"{self.name}:" + ",".join([*parts, *filter(None, [options])])


class HintModule(nn.Module):
    """What ``HintTerm.build`` gives: the loss of all its layers, not yet weighted."""

    def __init__(self, parts: Sequence[nn.Module], *, several: bool) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.several = several

    def forward(
        self,
        student: Sequence[torch.Tensor],
        teacher: Sequence[torch.Tensor],
        *,
        indices: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Activations with the batch first, one a layer; dataset rows and labels (B,) int64 → scalar."""
        teacher = [t.detach() for t in teacher]
        if self.several:
            result: torch.Tensor = self.parts[0](list(student), teacher, indices=indices, labels=labels)
            return result
        triples = zip(self.parts, student, teacher, strict=True)
        return torch.stack([part(s, t, indices=indices, labels=labels) for part, s, t in triples]).sum()


def parse_hint(spec: str) -> HintTerm:
    """``"fitnet:teacher=layer3,student=layer2,weight=100"`` → a term; several: ``teacher=layer1/layer2``.

    Errors: ``UsageError`` for an unknown loss or option (with the nearest names), a missing layer, and
    impossible values.
    """
    name, rest = registry.split_component(spec)
    cls = registry.component("losses.hints", name)
    registry.check_attributes(cls, ATTRIBUTES, f"hint loss {name!r}")
    options = registry.parse_options(rest, spec)
    known = (*SHARED, *(f.name for f in dataclasses.fields(cls)))
    for key in options:
        if key not in known:
            raise UsageError(f"hint loss {name!r} has no option {key!r}{nearest(key, known)}")
    teacher, student = _layers(options.pop("teacher", "")), _layers(options.pop("student", ""))
    if not teacher or not student:
        absent = "the student's layer" if teacher else "the teacher's layer" if student else "both layers"
        raise UsageError(f"{spec!r} lacks {absent}: --hint {FORM.format(name=name)}")
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
    loss = cls(**registry.typed_options(cls, options, f"hint loss {name!r}"))
    return HintTerm(name, loss, teacher, student, weight)


def parse_hints(specs: Iterable[str]) -> list[HintTerm]:
    """One term a spec, in their order.

    Errors: ``UsageError`` as ``parse_hint``, for the same spec twice, and for two that replace the logits.
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
