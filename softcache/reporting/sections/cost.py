"""What the teacher cost once, and what it would have cost in every training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from softcache.console import counted, duration, rate
from softcache.dumping.spent import Spent, spent_on
from softcache.reporting.elements import element, paragraph
from softcache.reporting.figure import INK, MUTED, STUDENT, TEACHER, figure
from softcache.reporting.findings import Findings, Left, Section
from softcache.reporting.students import Student

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLACE = 80
TITLE = "What it cost"


def section(findings: Findings) -> Section:
    students = [own for own in findings.students if own.lines]
    seconds = sum(own.epochs_seconds for own in students)
    distilled = [own for own in students if not own.alone]
    asked = sum(own.samples for own in distilled)
    if not students or not asked:
        return Left(
            "No student that learns from a teacher has finished an epoch yet, so there are no times to compare."
        )
    training = paragraph(
        f"{counted(len(students), 'student')} {'was' if len(students) == 1 else 'were'} trained in "
        f"{duration(seconds)}, evaluations included, processes beside each other added up."
    )
    live = [own for own in students if own.online]
    if live:
        training = element("div", training, paragraph(_words_online(live)))
    students = [own for own in students if not own.online]
    distilled = [own for own in distilled if not own.online]
    if not distilled:
        return training
    seconds, asked = sum(own.epochs_seconds for own in students), sum(own.samples for own in distilled)
    spent = spent_on(findings.cache) if findings.cache is not None else None
    if findings.cache is None:
        return element(
            "div", training, paragraph("What the teacher cost isn't known, as the cache isn't at hand.", class_="left")
        )
    if spent is None:
        text = "Its cache doesn't say how long the dump took; softcache dump notes it in each cache that it makes."
        return element("div", training, paragraph("What the teacher cost isn't known. " + text, class_="left"))
    keys = findings.cache.rows * findings.cache.views
    once, in_loop = spent.seconds_of(keys), spent.seconds_of(asked)
    bars = {
        "teacher, once for the cache": (once, TEACHER),
        f"teacher, live in {counted(len(distilled), 'training')}": (in_loop, TEACHER),
        f"{counted(len(students), 'student')}, without a teacher": (seconds, STUDENT),
    }
    drawn = figure(
        "cost",
        lambda axes: _paint(axes, bars),
        told="; ".join(f"{name}: {duration(own)}" for name, (own, _) in bars.items()),
        caption="Seconds that were spent, and in the middle those that the teacher would have taken at the same speed.",
        width=640.0,
        height=150.0,
    )
    return element("div", paragraph(_words(spent, keys, once, asked, in_loop, len(distilled))), training, drawn)


def _words_online(students: Sequence[Student]) -> str:
    took = duration(sum(own.teacher_seconds for own in students))
    return f"In {counted(len(students), 'training')} the teacher was running, and took {took} of the time."


def _words(spent: Spent, keys: int, once: float, asked: int, live: float, trainings: int) -> str:
    text = (
        f"The teacher was asked {keys:,} times for the cache, which took {duration(once)} at "
        f"{rate(spent.keys / spent.seconds)}. {counted(trainings, 'distilled student')} saw {asked:,} samples: with "
        f"the teacher in the loop of each it would have been asked for all of them, for {duration(live)} at that "
        "speed, "
    )
    ratio = live / once
    return text + (
        f"{ratio:.3g} times as long." if ratio >= 1 else f"{ratio:.2g} of that: more students make up for it."
    )


def _paint(axes: Axes, bars: dict[str, tuple[float, str]]) -> None:
    places = list(range(len(bars), 0, -1))
    values = [seconds for seconds, _ in bars.values()]
    drawn = axes.barh(places, values, height=0.56, color=[colour for _, colour in bars.values()], linewidth=0)
    drawn[1].set_alpha(0.4)  # nobody has spent these
    for place, value in zip(places, values, strict=True):
        axes.text(value + 0.01 * max(values), place, duration(value), va="center", color=INK)
    axes.set_yticks(places, list(bars))
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_ylim(0.4, len(bars) + 0.6)
    axes.set_xlim(0, 1.22 * max(values))
    axes.xaxis.set_visible(False)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.axvline(0, color=MUTED, linewidth=1.0)
