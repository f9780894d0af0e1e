"""The figures of docs/real.md: accuracy over the number of recorded views, and over the teacher's seconds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

from benchmarks.cifar100_rows import VIEWS, row
from benchmarks.intervals import Pooled

Runs = Mapping[str, Sequence[float]]
STYLES = {"matched": ("#0b6e99", "o"), "mean": ("#c8641b", "s"), "both": ("#4f8a3a", "D"), "live": ("#555555", "*")}
KINDS = ("matched", "mean", "both")


def over_views(runs: Runs, spread: Pooled | None, path: Path, what: str) -> None:
    """A curve for each kind of targets, with 95 % intervals where rows have several runs; students without and with a
    live teacher are lines. ``what``: the label of the accuracy."""
    figure, axes = _axes("recorded views of each picture", what)
    for kind in KINDS:
        _curve(axes, {views: runs[row(kind, views)] for views in VIEWS if row(kind, views) in runs}, spread, kind, kind)
    for name, style in (("live", "--"), ("alone", ":")):
        if name in runs:
            label = {"live": "live teacher", "alone": "labels alone"}[name]
            axes.axhline(statistics.mean(runs[name]), color="#555555", linestyle=style, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks(VIEWS, [str(views) for views in VIEWS])
    axes.set_xlim(VIEWS[0] / 1.2, VIEWS[-1] * 1.2)
    _save(figure, axes, path)


def over_seconds(runs: Runs, seconds: Mapping[str, float], spread: Pooled | None, path: Path, what: str) -> None:
    """The same over the time that the teacher takes for one student. ``seconds``: row → seconds."""
    figure, axes = _axes("seconds of the teacher, for one student", what)
    for kind in KINDS:
        points = {seconds[name]: runs[name] for name in (row(kind, v) for v in VIEWS) if name in runs}
        _curve(axes, points, spread, kind, f"cached, {kind}")
    if "live" in runs:
        _curve(axes, {seconds["live"]: runs["live"]}, spread, "live", "live teacher")
    if "alone" in runs:
        axes.axhline(statistics.mean(runs["alone"]), color="#555555", linestyle=":", label="labels alone")
    axes.set_xlim(left=0)
    _save(figure, axes, path)


def _curve(axes: Axes, points: Mapping[float, Sequence[float]], spread: Pooled | None, style: str, label: str) -> None:
    """``points``: place on the lower axis → runs."""
    if points:
        means = [statistics.mean(values) for values in points.values()]
        halves = None if spread is None else [spread.half_width(len(values)) for values in points.values()]
        colour, marker = STYLES[style]
        axes.errorbar(list(points), means, yerr=halves, fmt=f"{marker}-", color=colour, capsize=3, label=label)


def _axes(below: str, left: str) -> tuple[pyplot.Figure, Axes]:
    figure, axes = pyplot.subplots(figsize=(6.4, 4.2), dpi=150)
    axes.set_xlabel(below)
    axes.set_ylabel(left)
    axes.grid(alpha=0.25)
    return figure, axes


def _save(figure: pyplot.Figure, axes: Axes, path: Path) -> None:
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Software": None})
    pyplot.close(figure)
