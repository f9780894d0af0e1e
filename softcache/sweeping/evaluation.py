"""What models came to on a split, beside their teacher and each other: runs that differ in the seed alone are a row."""

from __future__ import annotations

import csv
import dataclasses
import io
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from softcache.sweeping.settings import grouped, varied
from softcache.sweeping.statistics import deviation
from softcache.training.scores import Scores

# By name in JSON → what a table calls it. Those of scores are in ``training.scores``.
BESIDE = {
    "agreement": "agreement with the teacher",
    "kl": "KL(teacher‖student) at T=1",
    "kl_T": "KL(teacher‖student) at its T",
    "teacher_r2": "R² to the teacher",
    "teacher_cosine": "cosine to the teacher",
    "teacher_mse": "mean squared error to the teacher",
}


@dataclass(frozen=True)
class OfClass:
    """``name`` of a class, its labelled ``rows``, and the shares of them that the student and the teacher recognize;
    None where it has no rows or there is no teacher."""

    name: str
    rows: int
    student: float | None
    teacher: float | None

    @property
    def difference(self) -> float | None:
        """The student's less the teacher's."""
        return None if self.student is None or self.teacher is None else self.student - self.teacher


@dataclass(frozen=True)
class OfTeacher:
    """The teacher that a model is compared with. ``source``: where its outputs are from. ``scores``: None without
    labels; ``cost``: parameters, FLOPs and latency as JSON, None of one whose outputs were read."""

    name: str
    source: str
    scores: Scores | None
    cost: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        numbers = dataclasses.asdict(self.scores) if self.scores is not None else {}
        return {"model": self.name, "source": self.source, **numbers, **(self.cost or {})}


@dataclass(frozen=True)
class Evaluated:
    """One model on one split. ``scores``: beside the labels, None without any. ``beside``: beside the teacher, names of
    ``BESIDE`` → numbers, with ``T`` where the divergence is at a second temperature. ``cost``: as JSON.
    ``setting``, ``seed``: of a run, None of another model. ``left_out``: why it isn't compared with a teacher."""

    model: str
    dataset: str
    split: str
    scores: Scores | None
    beside: Mapping[str, float | None] = field(default_factory=dict)
    cost: Mapping[str, Any] = field(default_factory=dict)
    teacher: OfTeacher | None = None
    classes: tuple[OfClass, ...] = ()
    setting: dict[str, Any] | None = None
    seed: int | None = None
    left_out: str | None = None

    @property
    def numbers(self) -> dict[str, float]:
        """All that has a mean over seeds."""
        scores = dataclasses.asdict(self.scores) if self.scores is not None else {}
        found = {**scores, **{name: value for name, value in self.beside.items() if name != "T"}}
        return {name: value for name, value in found.items() if value is not None and name != "samples"}

    def to_json(self) -> dict[str, Any]:
        """One object for scripts."""
        scores = dataclasses.asdict(self.scores) if self.scores is not None else {}
        found: dict[str, Any] = {"model": self.model, "dataset": self.dataset, "split": self.split}
        found |= {**scores, **self.beside, **self.cost}
        if self.seed is not None:
            found["seed"] = self.seed
        if self.teacher is not None:
            found["teacher"] = self.teacher.to_json()
        if self.left_out is not None:
            found["left_out"] = self.left_out
        if self.classes:
            found["classes"] = [dataclasses.asdict(one) | {"difference": one.difference} for one in self.classes]
        return found


@dataclass(frozen=True)
class EvaluatedRow:
    """Models of one setting. ``varied``: what tells it from the other rows; ``model``: the name of a single one."""

    varied: dict[str, str]
    models: list[Evaluated]

    @property
    def first(self) -> Evaluated:
        return self.models[0]

    def values(self, name: str) -> list[float]:
        """A number of each model that has it."""
        return [one.numbers[name] for one in self.models if name in one.numbers]

    def class_accuracy(self, place: int, of: str) -> float | None:
        """The mean over seeds of the ``student``'s accuracy in a class, or of the ``teacher``'s."""
        values = [getattr(one.classes[place], of) for one in self.models]
        return None if None in values else statistics.mean(values)

    def to_json(self) -> dict[str, Any]:
        names = list(dict.fromkeys(name for one in self.models for name in one.numbers))
        found: dict[str, Any] = {"setting": self.varied, "models": [one.model for one in self.models]}
        for name in names:
            values = self.values(name)
            found[name] = {"mean": statistics.mean(values), "deviation": deviation(values)}
        return found


@dataclass(frozen=True)
class Evaluation:
    """``models``: each by itself. ``rows``: those that differ in the seed alone together."""

    models: list[Evaluated]
    rows: list[EvaluatedRow]

    @classmethod
    def of(cls, models: Sequence[Evaluated]) -> Evaluation:
        settings = [{**(one.setting or {"model": one.model}), "dataset": one.dataset} for one in models]
        groups = grouped(list(zip(models, settings, strict=True)), settings)
        of_runs = [setting for (one, setting), *_ in groups if one.setting is not None]
        told = iter(varied(of_runs))
        names = [name for first in varied(of_runs)[:1] for name in first]
        rows = []
        for group in groups:
            own = [one for one, _ in group]
            options = next(told) if own[0].setting is not None else dict.fromkeys(names, "–")
            model = {"model": own[0].model} if len(of_runs) < len(groups) else {}
            rows.append(EvaluatedRow({**model, **options}, own))
        return cls(list(models), rows)

    def to_json(self) -> dict[str, Any]:
        """One object for scripts."""
        return {"rows": [row.to_json() for row in self.rows], "models": [one.to_json() for one in self.models]}

    def csv(self) -> str:
        """A line a model with all of its numbers; with classes a line a class of each model."""
        lines = list(self._class_lines() if any(one.classes for one in self.models) else self._model_lines())
        written = io.StringIO()
        writer = csv.DictWriter(written, list(dict.fromkeys(name for line in lines for name in line)), restval="")
        writer.writeheader()
        writer.writerows(lines)
        return written.getvalue().replace("\r\n", "\n")

    def _model_lines(self) -> Iterator[dict[str, Any]]:
        for one, told in self._told():
            numbers = {name: value for name, value in one.to_json().items() if isinstance(value, (int, float))}
            teacher = one.teacher.to_json() if one.teacher is not None else {}
            found = {**told, **numbers}
            for owner, cost in (("", one.cost), ("teacher_", one.teacher.cost if one.teacher else None)):
                for time in (cost or {}).get("latency", ()):
                    found[f"{owner}latency_{time['batch']}_s"] = time["median"]
            named = {f"teacher_{name}": value for name, value in teacher.items() if not isinstance(value, list)}
            yield {**found, **named, "left_out": one.left_out}

    def _class_lines(self) -> Iterator[dict[str, Any]]:
        for one, told in self._told():
            for own in one.classes:
                numbers = {"class": own.name, "rows": own.rows, "student": own.student, "teacher": own.teacher}
                yield {**told, "seed": one.seed, **numbers, "difference": own.difference}

    def _told(self) -> Iterator[tuple[Evaluated, dict[str, Any]]]:
        """Each model with what its line begins with."""
        for row in self.rows:
            for one in row.models:
                options = {name: value for name, value in row.varied.items() if name not in ("model", "dataset")}
                yield one, {"model": one.model, "dataset": one.dataset, "split": one.split, **options}
