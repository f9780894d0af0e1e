"""All settings beside each other, with their teacher and with the students on labels alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from softcache.console import counted, duration
from softcache.reporting.elements import Element, cell, element, head, paragraph, table
from softcache.reporting.findings import Findings, Section, alone_beside
from softcache.reporting.numbers import difference, score, spread, title, unit
from softcache.reporting.settings import Setting, told_option
from softcache.reporting.students import AGAIN, SEARCHED
from softcache.sweeping.statistics import Paired, paired

PLACE = 10
TITLE = "Comparison"
SPLITS = {"val": "held-out", "test": "test"}


def section(findings: Findings) -> Section:
    options = list(findings.settings[0].varied)
    shown = [on for on in SPLITS if any(setting.scores(on) for setting in findings.settings)]
    if findings.teachers and "test" not in shown:
        shown.append("test")
    gains = gained(findings)
    settings = _ordered(findings)
    several = any(len(setting.students) > 1 for setting in settings)
    phases, rows = (
        any(setting.phase for setting in findings.settings),
        any(setting.row for setting in findings.settings),
    )
    name = title(findings.leading)
    names = [] if options and not rows else ["trained"]
    header = [head(told_option(own)) for own in [*names, *options]]
    header += [head("students of")] if phases else []
    header += [head(f"{SPLITS[on]} {name}{unit(findings.leading)}", number=True) for on in shown]
    header += [head("gain over labels alone", number=True)] if gains else []
    header += [head("students", number=True), head("seconds each", number=True), head("")]
    wide = len(names) + len(options) + phases
    lines = [_teacher(findings, own, value, wide, shown, bool(gains)) for own, value in findings.teachers.items()]
    for setting in settings:
        lines.append(_row(findings, setting, bool(names), phases, shown, gains))
    return element(
        "div",
        table(header, lines, caption="Settings and what their students came to", class_="sortable"),
        *[paragraph(text, class_="note") for text in _notes(findings, bool(gains), several)],
    )


def _ordered(findings: Findings) -> list[Setting]:
    """The best first, by the score that settings are compared on; what a search has trained again before all else."""
    phases = {AGAIN: 0, "": 1, SEARCHED: 2}

    def key(setting: Setting) -> tuple[float, float]:
        mean = setting.mean(findings.on)
        return phases.get(setting.phase, 1), float("inf") if mean is None else -mean

    return sorted(findings.settings, key=key)


def gained(findings: Findings) -> dict[int, Paired]:
    """By the id of a setting: what it is above that on labels alone beside it, over the seeds that both have."""
    bases = {id(own): alone_beside(findings.settings, own) for own in findings.settings if not own.alone}
    pairs = [(own, base) for own in findings.settings if (base := bases.get(id(own))) is not None]
    on = "test" if any(own.scores("test") and base.scores("test") for own, base in pairs) else "val"
    found = {}
    for setting, base in pairs:
        ours, theirs = setting.scores(on), base.scores(on)
        seeds = sorted(ours.keys() & theirs.keys())
        if seeds:
            found[id(setting)] = paired([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds])
    return found


def _teacher(findings: Findings, name: str, value: float, wide: int, shown: Sequence[str], gains: bool) -> Element:
    numbers = [
        cell(score(findings.leading, value), number=True, sort=value) if on == "test" else cell("–", number=True)
        for on in shown
    ]
    blank = [cell("–", number=True) for _ in range(gains + 2)]
    padding = [cell("–") for _ in range(wide - 1)]
    return element("tr", cell(name), *padding, *numbers, *blank, element("td", mark("teacher")))


def _row(
    findings: Findings, setting: Setting, named: bool, phases: bool, shown: Sequence[str], gains: dict[int, Paired]
) -> Element:
    cells = [cell(setting.text)] if named else []
    cells += [cell(value, sort=_number(value)) for value in setting.varied.values()]
    cells += [cell(setting.phase)] if phases else []
    for on in shown:
        values = list(setting.scores(on).values())
        sort = statistics.mean(values) if values else None
        cells.append(cell(spread(findings.leading, values), number=True, sort=sort))
    if gains:
        own = gains.get(id(setting))
        cells.append(cell("–", number=True) if own is None else _gain(findings.leading, own))
    done = sum(student.outcome.result is not None for student in setting.students)
    cells.append(cell(f"{done}/{len(setting.students)}", number=True, sort=done))
    seconds = [student.seconds for student in setting.students if student.seconds is not None]
    each = statistics.mean(seconds) if seconds else None
    cells.append(cell("–" if each is None else f"{each:,.1f}", number=True, sort=each))
    return element("tr", *cells, element("td", *_marks(findings, setting)), class_=_class(findings, setting))


def _number(text: str) -> float | None:
    """What a value of an option is sorted by, where it is a number."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _gain(leading: str, own: Paired) -> Element:
    around = f" ± {score(leading, own.half_width)}" if own.half_width is not None else ""
    return cell(difference(leading, own.mean) + around, number=True, sort=own.mean)


def mark(role: str, text: str | None = None) -> Element:
    """A word in the colour that figures draw it in."""
    return element("span", text or role, class_=f"key {role}")


def _marks(findings: Findings, setting: Setting) -> list[Element | str]:
    found: list[Element | str] = []
    chosen = findings.is_chosen(setting)
    if setting is findings.best:
        found.append(mark("student", "chosen" if chosen else "shown"))
    elif setting.alone:
        found.append(mark("alone", "chosen: labels alone" if chosen else "labels alone"))
    errors = [student.outcome for student in setting.students if student.outcome.error is not None]
    early = [own for own in errors if own.pruned]
    if early:
        found.append(element("span", "ended early", class_="quiet", title=str(early[0].error)))
    if len(errors) > len(early):
        reason = next(own.error for own in errors if not own.pruned)
        found.append(element("span", f"{len(errors) - len(early)} failed", class_="quiet", title=str(reason)))
    return [part for one in found for part in (one, " ")]


def _class(findings: Findings, setting: Setting) -> str | None:
    return "best" if setting is findings.best else "alone" if setting.alone else None


def _notes(findings: Findings, gains: bool, several: bool) -> list[str]:
    found = []
    if findings.best is not None:
        found.append(f"The sections below look into the setting {findings.best.text}: {findings.chosen_by}.")
    if several:
        found.append("± behind a score is the standard deviation of a single student over its seeds.")
    if gains:
        found.append(
            "A gain is the mean over pairs of students of one seed, in points, with half of its 95 % interval "
            "(Student's paired t) where there are at least two pairs."
        )
    elif not any(setting.alone for setting in findings.settings):
        found.append(
            "No student was trained on labels alone, so what the teacher is worth can't be seen here: softcache "
            "compare trains both, and softcache train --alpha 0 such a student."
        )
    elif any(not setting.alone for setting in findings.settings):
        found.append(
            "No student on labels alone has the same student, share of labels, held-out rows and order of rows as one "
            "that learns from a teacher, so what the teacher is worth can't be seen here."
        )
    left = sum(student.outcome.result is None and student.outcome.error is None for student in findings.students)
    if left:
        was = "was" if left == 1 else "were"
        found.append(f"{left:,} of {counted(len(findings.students), 'student')} {was} not finished when this was made.")
    total = sum(student.seconds or 0.0 for student in findings.students)
    if len(findings.students) > 1 and total:
        shared = any(student.together > 1 for student in findings.students)
        note = " Students of one loop share its time evenly." if shared else ""
        found.append(f"All students together took {duration(total)} of training.{note}")
    return found
