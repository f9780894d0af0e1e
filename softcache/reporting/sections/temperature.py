"""How the score depends on the temperature and the weight of the teacher's losses."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from softcache.reporting.figure import INK, MAP, ON_MAP, STUDENT, figure
from softcache.reporting.findings import Findings, Left, Section
from softcache.reporting.numbers import scaled, score, title, unit
from softcache.reporting.settings import Setting
from softcache.sweeping.statistics import deviation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLACE = 30
TITLE = "Temperature and weight"
NAMES = {"T": "temperature T", "alpha": "weight alpha of the teacher's losses"}
Numbers = Mapping[str, float]


def section(findings: Findings) -> Section:
    found = [(numbers, own) for own in findings.settings if (numbers := _numbers(own)) and own.scores(findings.on)]
    varied = [name for name in NAMES if len({numbers[name] for numbers, _ in found if name in numbers}) > 1]
    if not varied:
        return Left(
            "All settings have the same temperature and the same weight of the teacher: softcache sweep --loss kl "
            "--T 1,2,4,8 --alpha 0.5,0.9 trains students of which a map can be drawn."
        )
    where = f"{'held-out' if findings.on == 'val' else 'test'} {title(findings.leading)}"
    if len(varied) == 1:
        name = varied[0]
        groups = _groups(found, (name,))
        points = _best(groups, findings)
        return figure(
            "temperature",
            lambda axes: _line(axes, findings, name, points, f"{where}{unit(findings.leading)}"),
            told=f"{where} over {NAMES[name]}: {_told(points, findings)}",
            caption=_caption(f"Mean {where} over the {NAMES[name]}.", groups, bars=True),
        )
    groups = _groups(found, ("T", "alpha"))
    points = _best(groups, findings)
    rows, columns = {alpha for _, alpha in points}, {T for T, _ in points}
    return figure(
        "temperature",
        lambda axes: _map(axes, findings, points),
        told=f"{where} over T and alpha: {_told(points, findings)}",
        caption=_caption(
            f"Mean {where}{unit(findings.leading)}; the darker the field, the higher.", groups, bars=False
        ),
        width=min(760.0, 130.0 + 72.0 * len(columns)),
        height=min(620.0, 66.0 + 34.0 * len(rows)),
    )


def _groups(found: Sequence[tuple[Numbers, Setting]], names: tuple[str, ...]) -> dict[tuple[float, ...], list[Setting]]:
    """Settings by their numbers of these names; those that lack one are left out."""
    groups: dict[tuple[float, ...], list[Setting]] = {}
    for numbers, setting in found:
        if set(names) <= set(numbers):
            groups.setdefault(tuple(numbers[name] for name in names), []).append(setting)
    return groups


def _numbers(setting: Setting) -> dict[str, float]:
    """T and alpha of a setting that learns from a teacher, where they are numbers and no schedules."""
    if setting.alone:
        return {}
    first = setting.students[0]
    terms = [term for term in first.record.losses if isinstance(term, dict)] if first.record is not None else []
    found = {}
    for name, values in {
        "T": [first.asked.get("T"), setting.option("T"), *(term.get("T") for term in terms)],
        "alpha": [first.asked.get("alpha"), setting.option("alpha")],
    }.items():
        value = next((own for own in values if own is not None), None)
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            continue
        # Anyone may have written them, and the axes have room for what a loss can have.
        if math.isfinite(number) and (number > 0 if name == "T" else number >= 0):
            found[name] = number
    return found


def _best(
    groups: Mapping[tuple[float, ...], list[Setting]], findings: Findings
) -> dict[tuple[float, ...], tuple[float, float | None]]:
    """Of the settings at each place that of the highest mean: this mean and the deviation over its seeds."""
    found = {}
    for place, settings in sorted(groups.items()):
        best = max(settings, key=lambda own: own.mean(findings.on) or 0.0)
        values = list(best.scores(findings.on).values())
        found[place] = statistics.mean(values), deviation(values)
    return found


def _caption(text: str, groups: Mapping[tuple[float, ...], list[Setting]], *, bars: bool) -> str:
    if bars:
        text += " Bars are the standard deviation over the seeds."
    if any(len(settings) > 1 for settings in groups.values()):
        text += " Where settings differ in other options too, the best of them counts."
    return text


def _told(points: Mapping[tuple[float, ...], tuple[float, float | None]], findings: Findings) -> str:
    parts = [f"{' and '.join(f'{n:g}' for n in at)}: {score(findings.leading, own[0])}" for at, own in points.items()]
    return "; ".join(parts[:40])


def _line(
    axes: Axes,
    findings: Findings,
    name: str,
    points: Mapping[tuple[float, ...], tuple[float, float | None]],
    label: str,
) -> None:
    at = [place[0] for place in points]
    means = [scaled(findings.leading, mean) for mean, _ in points.values()]
    spreads = [scaled(findings.leading, spread or 0.0) for _, spread in points.values()]
    if name == "T" and max(at) / min(at) >= 4:
        axes.set_xscale("log", base=2)
    if any(spreads):
        axes.errorbar(at, means, spreads, color=STUDENT, marker="o", markersize=5, elinewidth=1.2, capsize=0)
    else:
        axes.plot(at, means, color=STUDENT, marker="o", markersize=5)
    axes.set_xticks(at, [f"{value:g}" for value in at])
    axes.set_xticks([], minor=True)
    axes.grid(False, axis="x")
    axes.set_xlabel(NAMES[name])
    axes.set_ylabel(label)


def _map(axes: Axes, findings: Findings, points: Mapping[tuple[float, ...], tuple[float, float | None]]) -> None:
    from matplotlib.patches import Rectangle

    across = sorted({place[0] for place in points})
    up = sorted({place[1] for place in points})
    means = [mean for mean, _ in points.values()]
    low, width = min(means), (max(means) - min(means)) or 1.0
    for (T, alpha), (mean, _) in points.items():
        x, y, share = across.index(T), up.index(alpha), (mean - low) / width
        opacity = 0.08 + 0.87 * share
        axes.add_patch(Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, facecolor=MAP, edgecolor="none", alpha=opacity))
        axes.text(
            x, y, score(findings.leading, mean), ha="center", va="center", color=ON_MAP if opacity > 0.55 else INK
        )
    axes.set_xlim(-0.5, len(across) - 0.5)
    axes.set_ylim(-0.5, len(up) - 0.5)
    axes.set_xticks(range(len(across)), [f"{value:g}" for value in across])
    axes.set_yticks(range(len(up)), [f"{value:g}" for value in up])
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("T")
    axes.set_ylabel("alpha")
