"""Which classes gain by the teacher, and which lose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from softcache.evaluating.measures import per_class
from softcache.evaluating.predictions import Predictions
from softcache.reporting.elements import element, paragraph, plain
from softcache.reporting.figure import ALONE, INK, LINE, STUDENT, figure
from softcache.reporting.findings import Findings, Left, Section
from softcache.reporting.numbers import signed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLACE = 50
TITLE = "Class by class"
MOST = 40  # classes that are drawn


@dataclass(frozen=True)
class Gain:
    """Of a class: the ``difference`` of both accuracies, in 0..1, and how many rows it has."""

    name: str
    difference: float
    count: int


def section(findings: Findings) -> Section:
    said = findings.said
    if said.student is None:
        return Left(said.why("student"))
    if said.alone is None:
        return Left(said.why("alone"))
    if said.student.labels.ndim != 1 or said.student.labels.is_floating_point():
        return Left("The labels are no classes, so there are none to compare.")
    found = gains(said.student, said.alone)
    if not found:
        return Left("The split has no labels, so its classes can't be compared.")
    shown = found if len(found) <= MOST else [*found[: MOST // 2], *found[-MOST // 2 :]]
    up, down = sum(own.difference > 0 for own in found), sum(own.difference < 0 for own in found)
    left = f" Of {len(found)} classes the {MOST // 2} largest gains and losses are shown." if len(found) > MOST else ""
    drawn = figure(
        "classes",
        lambda axes: _paint(axes, shown),
        told=f"{up} classes gain, {down} lose",
        caption="Accuracy of the distilled student less that of the student on labels alone, in points." + left,
        width=640.0,
        height=70.0 + 19.0 * len(shown),
    )
    counts = sorted(own.count for own in found)
    text = (
        f"{up} of {len(found)} classes gain by the teacher, {down} lose. They have {counts[0]:,} to {counts[-1]:,} "
        "samples each: where they are few, a difference of a few samples means little."
    )
    return element("div", paragraph(text), drawn)


def gains(student: Predictions, alone: Predictions) -> list[Gain]:
    """Of each class that has rows, the largest first."""
    ours, theirs = per_class(student.logits, student.labels), per_class(alone.logits, alone.labels)
    difference = ours.accuracy - theirs.accuracy
    names = student.class_names or tuple(str(number) for number in range(len(difference)))
    found = [
        Gain(names[k], float(difference[k]), int(ours.count[k])) for k in range(len(difference)) if int(ours.count[k])
    ]
    return sorted(found, key=lambda own: -own.difference)


def _paint(axes: Axes, shown: list[Gain]) -> None:
    values = [100 * own.difference for own in shown]
    places = list(range(len(shown), 0, -1))
    colours = [STUDENT if value >= 0 else ALONE for value in values]
    axes.barh(places, values, height=0.68, color=colours, linewidth=0)
    axes.axvline(0, color=LINE, linewidth=1.2)
    reach = max([abs(value) for value in values] + [1.0])
    for place, value in zip(places, values, strict=True):
        axes.text(
            value + (0.02 if value >= 0 else -0.02) * reach,
            place,
            signed(value, 1),
            ha="left" if value >= 0 else "right",
            va="center",
            color=INK,
            fontsize=11,
        )
    axes.set_yticks(places, [plain(own.name, most=24) for own in shown])
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_ylim(0.4, len(shown) + 0.6)
    low, high = min([*values, 0.0]), max([*values, 0.0])
    axes.set_xlim(low - 0.14 * reach, high + 0.14 * reach)
    axes.grid(False, axis="y")
    axes.spines[:].set_visible(False)
    axes.set_xlabel("points")
