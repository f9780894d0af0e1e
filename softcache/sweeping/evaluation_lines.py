"""An evaluation as text: one row of models at length, several rows as tables that fit 80 columns."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from softcache.sweeping.evaluation import BESIDE, Evaluated, EvaluatedRow, Evaluation, OfTeacher
from softcache.sweeping.table import told_mean
from softcache.training.scores import TITLES

SHOWN = ("top1", "map", "r2", "loss", "ece", "f1", "cosine", "mse")  # scores in a table of several rows, at most three
SHORT = {
    "loss": "NLL",
    "ece": "calibration",
    "map": "mean AP",
    "mse": "squared error",
    "agreement": "agreement",
    "kl": "KL at T=1",
    "kl_T": "KL at its T",
    "teacher_r2": "R²",
    "teacher_cosine": "cosine",
    "teacher_mse": "squared error",
}
ROOM = 30  # columns that settings may take in each table; wider ones are numbered, and listed once
Table = tuple[list[str], list[list[str]]]


def heading(evaluation: Evaluation) -> list[tuple[str, str]]:
    """Names and values of what all that is evaluated has in common."""
    first = evaluation.models[0]
    found = [("model", first.model)] if len(evaluation.models) == 1 else []
    if len(evaluation.models) > 1:
        found.append(("models", f"{len(evaluation.models)} in {len(evaluation.rows)} settings"))
    if len({(one.dataset, one.split) for one in evaluation.models}) == 1:
        samples = first.scores.samples if first.scores is not None else None
        many = f", {samples:,} samples" if samples is not None else ", without labels"
        found.append(("data", f"{first.dataset}/{first.split}{many}"))
    several = len({one.dataset for one in evaluation.models}) > 1
    for label, teacher, dataset in _teachers(evaluation).values():
        found.append((label, f"{teacher.name} ({teacher.source}{f', on {dataset}' if several else ''})"))
    reasons = dict.fromkeys(one.left_out for one in evaluation.models if one.left_out is not None)
    found += [("teacher", f"not compared: {reason}") for reason in reasons]
    return found


def at_length(evaluation: Evaluation) -> Table:
    """Everything that is known of models of one setting, which are all that there are, beside the first's teacher."""
    (row,) = evaluation.rows
    first, teacher = row.first, row.first.teacher
    lines = []
    theirs = teacher.to_json() if teacher is not None else {}
    scores = [name for name in first.numbers if name in TITLES]
    for name in scores:
        beside = told_mean([theirs[name]], name) if theirs.get(name) is not None else "–"
        lines.append([TITLES[name], told_mean(row.values(name), name), beside])
    for name, own, beside in _costs(first):
        lines.append([name, own, beside])
    for name in BESIDE:
        if row.values(name):
            lines.append([_beside_title(name, row), told_mean(row.values(name), name), ""])
    header = ["", "student", "teacher 1" if len(_teachers(evaluation)) > 1 else "teacher"]
    if teacher is None:
        header, lines = ["", "model"], [line[:2] for line in lines]
    elif not first.setting:
        header[1] = "model"
    return header, lines


def tables(evaluation: Evaluation) -> list[Table]:
    """Several rows: beside the labels, beside the teacher, and what the networks cost."""
    names, settings, _ = _settings(evaluation)
    found = []
    beside = [name for name in BESIDE if any(row.values(name) for row in evaluation.rows)]
    scores = [name for name in SHOWN if any(row.values(name) for row in evaluation.rows)][:3]
    if scores:
        lines = []
        for label, teacher, _ in _teachers(evaluation).values():
            numbers = teacher.to_json()
            own = [told_mean([numbers[n]] if numbers.get(n) is not None else [], n) for n in scores]
            lines.append([label, *[""] * (len(names) - 1), "", *own])
        for row, setting in zip(evaluation.rows, settings, strict=True):
            own = [told_mean(row.values(name), name) for name in scores]
            lines.append([*setting, str(len(row.models)), *own])
        found.append(([*names, "runs", *(SHORT.get(name, TITLES[name]) for name in scores)], lines))
    if beside:
        lines, teachers = [], _teachers(evaluation)
        several = ["teacher"] if len(teachers) > 1 else []
        for row, setting in zip(evaluation.rows, settings, strict=True):
            T = row.first.beside.get("kl_temperature")
            own = [_taught_by(row, teachers)] if several else []
            own += [told_mean(row.values(name), name) for name in beside]
            lines.append([*setting, *own, f"T={T:g}" if T is not None and "kl_T" in beside else ""])
        found.append(([*names, *several, *(SHORT[name] for name in beside), ""], lines))
    found.append(_cost_table(evaluation))
    return found


def legend(evaluation: Evaluation) -> Table | None:
    """What the numbers of the settings in ``tables`` stand for; None where the tables say it by themselves."""
    return _settings(evaluation)[2]


def of_classes(row: EvaluatedRow, evaluation: Evaluation) -> Table:
    """Each class: its rows, and how many of them student and teacher recognize, as means over seeds."""
    lines, taught, teachers = [], row.first.teacher is not None, _teachers(evaluation)
    for place, own in enumerate(row.first.classes):
        student, teacher = (row.class_accuracy(place, of) for of in ("student", "teacher"))
        line = [own.name, f"{own.rows:,}", told_mean([] if student is None else [student], "top1")]
        if taught:
            line.append(told_mean([] if teacher is None else [teacher], "top1"))
            line.append("–" if student is None or teacher is None else f"{100 * (student - teacher):+.2f} points")
        lines.append(line)
    name = f"teacher {_taught_by(row, teachers)}" if len(teachers) > 1 else "teacher"
    return ["class", "rows", "student", *([name, "difference"] if taught else [])], lines


def told_setting(row: EvaluatedRow) -> str:
    """``T=4 alpha=0.5``"""
    return " ".join(f"{name}={value}" for name, value in row.varied.items()) or row.first.model


def told_count(number: int | None) -> str:
    """``11.7 M``: three digits; a dash where nobody knows it."""
    if number is None:
        return "–"
    for unit, factor in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= factor:
            return f"{number / factor:.3g} {unit}" if number < 999.5 * factor else f"{number / factor:,.0f} {unit}"
    return str(number)


def _teachers(evaluation: Evaluation) -> dict[Hashable, tuple[str, OfTeacher, str]]:
    """The teachers that there are, each with its dataset and what tables call it: numbered where they are several."""
    found: dict[Hashable, tuple[OfTeacher, str]] = {}
    for one in evaluation.models:
        if one.teacher is not None:
            found.setdefault(_known_by(one.teacher, one.dataset), (one.teacher, one.dataset))
    labels = [f"teacher {number}" for number in range(1, len(found) + 1)] if len(found) > 1 else ["teacher"]
    return {key: (label, *own) for label, (key, own) in zip(labels, found.items(), strict=False)}


def _known_by(teacher: OfTeacher, dataset: str) -> Hashable:
    """What tells teachers apart: networks of one name may have different parameters."""
    return teacher.name, teacher.source, dataset, teacher.scores


def _taught_by(row: EvaluatedRow, teachers: Mapping[Hashable, tuple[str, OfTeacher, str]]) -> str:
    """The numbers of the teachers that models of a row are compared with; a dash where they are compared with none."""
    known = [_known_by(one.teacher, one.dataset) for one in row.models if one.teacher is not None]
    labels = [teachers[key][0].removeprefix("teacher ") for key in dict.fromkeys(known)]
    return ", ".join(labels) or "–"


def _settings(evaluation: Evaluation) -> tuple[list[str], list[list[str]], Table | None]:
    """Columns that tell rows apart, their values in each row and, where they are too wide to be repeated in every
    table, a table of them."""
    rows = evaluation.rows
    names = list(rows[0].varied)
    room = ROOM - (len("teacher") + 2 if len(_teachers(evaluation)) > 1 else 0)
    values = [list(row.varied.values()) for row in rows]
    width = sum(max(len(cell) for cell in column) + 2 for column in zip(names, *values, strict=True))
    if names and width <= room:
        return names, values, None
    numbers = [[f"[{number}]"] for number in range(1, len(rows) + 1)]
    if not names:
        return ["model"], [[row.first.model] for row in rows], None
    lines = [[*number, *own] for number, own in zip(numbers, values, strict=True)]
    return ["setting"], numbers, (["setting", *names], lines)


def _cost_table(evaluation: Evaluation) -> Table:
    """A line a network: those of one spec and one cost are the same."""
    found: dict[tuple[str, ...], list[str]] = {}
    timed = any("latency" in one.cost for one in evaluation.models)
    teachers = _teachers(evaluation)
    for one in evaluation.models:
        own = _cost_line(one.cost, timed)
        name = (one.setting or {}).get("student") or one.model
        label = f"student {_short(str(name))}" if one.setting is not None else _short(one.model)
        found.setdefault((label, *own[:2]), [label, *own])
        if one.teacher is not None and one.teacher.cost is not None:
            label = f"{teachers[_known_by(one.teacher, one.dataset)][0]} {_short(one.teacher.name)}"
            found.setdefault((label,), [label, *_cost_line(one.teacher.cost, timed)])
    times = ["latency, batch 1", "batch 32"] if timed else []
    return ["network", "parameters", "FLOPs", *times], list(found.values())


def _cost_line(cost: Mapping[str, Any], timed: bool) -> list[str]:
    times = [f"{1000 * one['median']:.3g} ms" for one in cost.get("latency", ())]
    return [told_count(cost.get("parameters")), told_count(cost.get("flops")), *(times if timed else [])]


def _costs(one: Evaluated) -> list[tuple[str, str, str]]:
    theirs: Mapping[str, Any] = (one.teacher.cost if one.teacher is not None else None) or {}
    titles = (("parameters", "parameters"), ("flops", "FLOPs of one sample"))
    found = [(title, told_count(one.cost.get(name)), told_count(theirs.get(name))) for name, title in titles]
    beside = {time["batch"]: time for time in theirs.get("latency", ())}
    for time in one.cost.get("latency", ()):
        title = f"latency, batch {time['batch']}"
        found.append((title, _told_time(time), _told_time(beside.get(time["batch"]))))
    return found


def _told_time(time: Mapping[str, Any] | None) -> str:
    """``3.21 ms (3.1 to 3.4)``: the median and the quartiles."""
    if time is None:
        return "–"
    median, low, high = (1000 * time[name] for name in ("median", "low", "high"))
    return f"{median:.3g} ms ({low:.3g} to {high:.3g})"


def _beside_title(name: str, row: EvaluatedRow) -> str:
    T = row.first.beside.get("kl_temperature")
    return f"KL(teacher‖student) at T={T:g}" if name == "kl_T" and T is not None else BESIDE[name]


def _short(name: str) -> str:
    """The end of a path."""
    return name.rstrip("/").rpartition("/")[2] or name
