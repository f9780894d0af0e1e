"""How scores and losses went over the epochs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from softcache.reporting.elements import element, paragraph
from softcache.reporting.figure import ALONE, MUTED, STUDENT, figure, legend
from softcache.reporting.findings import Findings, Left, Section
from softcache.reporting.numbers import scaled, title, unit
from softcache.reporting.settings import Setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLACE = 20
TITLE = "Over the epochs"
MANY = 60  # settings that are drawn behind the two that are named


def section(findings: Findings) -> Section:
    leading = findings.leading
    scored = next((f"{on}_{leading}" for on in ("val", "test") if _has(findings, f"{on}_{leading}")), None)
    if not _has(findings, "loss"):
        return Left(
            "The runs' metrics.jsonl, in which each epoch has a line, are missing or empty: copy them beside the "
            "runs' config.json."
        )
    made = []
    if scored is not None:
        where = "held-out" if scored.startswith("val_") else "test"
        name = f"{where} {title(leading)}"
        made.append(
            figure(
                "curves-score",
                lambda axes: _paint(axes, findings, scored, f"{name}{unit(leading)}", leading),
                told=f"{name} over the epochs",
                caption=f"{name[0].upper()}{name[1:]} after each epoch.",
            )
        )
    made.append(
        figure(
            "curves-loss",
            lambda axes: _paint(axes, findings, "loss", "training loss", ""),
            told="training loss over the epochs",
            caption="Loss on the training rows. Settings with other losses or weights have another scale.",
        )
    )
    note = (
        "Lines are means over the seeds of a setting; where there are several, the area is between the lowest and the "
        "highest of them."
    )
    several = any(len(setting.students) > 1 for setting in (findings.best, findings.alone) if setting is not None)
    return element("div", element("div", *made, class_="figures"), paragraph(note, class_="note") if several else None)


def series(setting: Setting, name: str) -> dict[int, list[float]]:
    """Epoch → a number of each student's line."""
    found: dict[int, list[float]] = {}
    for student in setting.students:
        for line in student.lines:
            epoch, value = line.get("epoch"), line.get(name)
            if type(epoch) is int and isinstance(value, (int, float)) and math.isfinite(value):
                found.setdefault(epoch, []).append(float(value))
    return dict(sorted(found.items()))


def _name(findings: Findings) -> str:
    """Of the setting that is looked into."""
    if len(findings.settings) == 1:
        return "student"
    return "chosen" if findings.best is not None and findings.is_chosen(findings.best) else "shown"


def _has(findings: Findings, name: str) -> bool:
    return any(line.get(name) is not None for student in findings.students for line in student.lines)


def _paint(axes: Axes, findings: Findings, name: str, label: str, leading: str) -> None:
    from matplotlib.ticker import MaxNLocator, NullLocator

    named = [
        (findings.best, STUDENT, _name(findings)),
        (findings.alone, ALONE, "labels alone"),
    ]
    others = [own for own in findings.settings if all(own is not one for one, _, _ in named)][:MANY]
    every: list[float] = []
    for number, setting in enumerate(others):
        every += _line(axes, series(setting, name), leading, MUTED, "others" if number == 0 else None, behind=True)
    for chosen, colour, text in reversed(named):
        if chosen is not None:
            every += _line(axes, series(chosen, name), leading, colour, text, behind=False)
    if not leading and every and min(every) > 0 and max(every) > 20 * min(every):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.grid(False, axis="x")
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    if every:
        handles: tuple[Sequence[Any], Sequence[str]] = axes.get_legend_handles_labels()
        if len(handles[1]) > 1:
            legend(axes)


def _line(
    axes: Axes, found: dict[int, list[float]], leading: str, colour: str, label: str | None, *, behind: bool
) -> list[float]:
    if not found:
        return []
    values = {epoch: [scaled(leading, own) for own in numbers] for epoch, numbers in found.items()}
    epochs, means = list(values), [statistics.mean(own) for own in values.values()]
    style: dict[str, Any] = {"linewidth": 0.8, "alpha": 0.35} if behind else {"linewidth": 2.0, "zorder": 4}
    axes.plot(epochs, means, color=colour, label=label, marker="o" if len(epochs) == 1 else None, markersize=4, **style)
    if not behind and any(len(own) > 1 for own in values.values()):
        low, high = [min(own) for own in values.values()], [max(own) for own in values.values()]
        axes.fill_between(epochs, low, high, color=colour, alpha=0.16, linewidth=0, zorder=3)
    return means
