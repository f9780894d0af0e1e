"""Whether probabilities can be taken at their word: reliability diagrams."""

from __future__ import annotations

from typing import TYPE_CHECKING

from softcache.evaluating.measures import Calibration, calibration
from softcache.evaluating.predictions import Predictions
from softcache.reporting.elements import Element, counted_table, element, paragraph
from softcache.reporting.figure import ALONE, LINE, STUDENT, TEACHER, figure, legend
from softcache.reporting.findings import Findings, Left, Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLACE = 40
TITLE = "Calibration"
NAMES = {"student": "student", "alone": "labels alone", "teacher": "teacher"}
COLOURS = {"student": STUDENT, "alone": ALONE, "teacher": TEACHER}


def section(findings: Findings) -> Section:
    said = findings.said
    every = {name: getattr(said, name) for name in NAMES}
    found = {name: calibrated(own) for name, own in every.items() if own is not None and _has_labels(own)}
    if "student" not in found:
        return Left(said.why("student") or "The split has no labels that probabilities could be compared with.")
    drawn = figure(
        "calibration",
        lambda axes: _paint(axes, found),
        told="share of hits over the probability of the top class, in bins",
        caption="Share of hits over the probability that the network gives to its top class. Points are bins of equal "
        "width, larger where more samples are in them; on the diagonal a probability is what it says.",
    )
    rows = [
        (NAMES[name], f"{100 * own.ece:.2f}", f"{100 * _mean(own):.2f}", f"{100 * _hits(own):.2f}")
        for name, own in found.items()
    ]
    header = {
        "": False,
        "calibration error, %": True,
        "mean probability of the top class, %": True,
        "top-1, %": True,
    }
    caption = "Calibration error, mean probability and accuracy"
    text = (
        f"Expected calibration error over {len(next(iter(found.values())).count)} bins, of {_rows(found):,} samples of "
        f"the {said.viewed.samples.split} split. A student learns its teacher's probabilities too, so one "
        "whose teacher is too sure is too sure as well."
        if said.viewed is not None
        else ""
    )
    missing = [said.why(name) for name in NAMES if name not in found and said.why(name)]
    beside = element("div", counted_table(header, rows, caption=caption), *(_note(own) for own in [text, *missing]))
    return element("div", drawn, beside, class_="figures")


def calibrated(found: Predictions) -> Calibration:
    """Of the rows that have a label."""
    return calibration(found.logits, found.labels)


def _has_labels(found: Predictions) -> bool:
    return found.labels.ndim == 1 and not found.labels.is_floating_point() and bool((found.labels >= 0).any())


def _note(text: str) -> Element | None:
    return paragraph(text, class_="note") if text else None


def _rows(found: dict[str, Calibration]) -> int:
    return int(next(iter(found.values())).count.sum())


def _mean(own: Calibration) -> float:
    """The mean probability of the top class."""
    filled = own.count > 0
    return float((own.confidence[filled] * own.count[filled]).sum() / own.count.sum())


def _hits(own: Calibration) -> float:
    filled = own.count > 0
    return float((own.accuracy[filled] * own.count[filled]).sum() / own.count.sum())


def _paint(axes: Axes, found: dict[str, Calibration]) -> None:
    axes.plot([0, 100], [0, 100], color=LINE, linewidth=1.2, zorder=1)
    for name, own in reversed(found.items()):
        filled = own.count > 0
        x, y = 100 * own.confidence[filled], 100 * own.accuracy[filled]
        sizes = 8 + 120 * own.count[filled].double() / own.count.sum()
        axes.plot(x.tolist(), y.tolist(), color=COLOURS[name], linewidth=1.2, alpha=0.5, zorder=3)
        axes.scatter(
            x.tolist(), y.tolist(), s=sizes.tolist(), color=COLOURS[name], linewidths=0, label=NAMES[name], zorder=4
        )
    axes.set_xlim(-2, 104)
    axes.set_ylim(-4, 104)
    axes.set_xlabel("probability of the top class, %")
    axes.set_ylabel("share of hits, %")
    legend(axes)
