"""docs/real.md: the tables and figures of what ``benchmarks.cifar100`` has recorded.

python -m benchmarks.cifar100_page
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cifar100 import FILE, TABLES, VIEWS
from benchmarks.intervals import as_good, better, difference, pool
from benchmarks.rows import Trial, recorded

DOCS = Path(__file__).resolve().parents[1] / "docs"
MARGIN = 0.5  # points within which a student is as good as one with a live teacher
Runs = Mapping[str, Sequence[float]]


def runs_of(trials: Sequence[Trial], done: Mapping[str, dict[str, Any]]) -> dict[str, list[float]]:
    """Row → its accuracies in %, in the order of the table; rows without a run that came to its end are left out."""
    found: dict[str, list[float]] = {}
    for trial in trials:
        record = done.get(trial.key)
        if record is not None and record.get("top1") is not None:
            found.setdefault(trial.name, []).append(100 * record["top1"])
    return found


def table(runs: Runs, baseline: str = "alone", live: str = "live") -> str:
    """Mean, spread and the differences from the student alone and from the live teacher, with their intervals."""
    spread = pool(runs)
    lines = ["| student | runs | top-1 | against alone | against live |", "| --- | --- | --- | --- | --- |"]
    for name, values in runs.items():
        lines.append(
            f"| {name} | {len(values)} | {statistics.mean(values):.2f} ± {spread.half_width(len(values)):.2f} "
            f"| {_against(runs, name, baseline, _better)} | {_against(runs, name, live, _as_good)} |"
        )
    scatter = f"A single run scatters by {spread.deviation:.2f} points ({spread.freedom} degrees of freedom)."
    return "\n".join([*lines, "", scatter])


def _against(runs: Runs, name: str, other: str, verdict: Callable[[tuple[float, float]], str]) -> str:
    if name == other or other not in runs:
        return ""
    found = difference(runs, name, other)
    return f"{found[0]:+.2f} ± {found[1]:.2f}: {verdict(found)}"


def _better(found: tuple[float, float]) -> str:
    return "better" if better(found) else "worse" if better((-found[0], found[1])) else "not shown"


def _as_good(found: tuple[float, float]) -> str:
    return "as good" if as_good(found, MARGIN) else "not shown"


def failures(trials: Sequence[Trial], done: Mapping[str, dict[str, Any]]) -> list[str]:
    """One line for each run that failed, and one for those that are still to be made."""
    failed = [trial for trial in trials if "failed" in done.get(trial.key, {})]
    lines = [f"- {trial.name}, seed {trial.seed}: {done[trial.key]['failed']}" for trial in failed]
    missing = [trial for trial in trials if trial.key not in done]
    if missing:
        names = ", ".join(dict.fromkeys(trial.name for trial in missing))
        lines.append(f"- not run yet: {len(missing)} of {len(trials)} ({names})")
    return lines


def draw(
    path: Path,
    curves: Mapping[str, tuple[Sequence[float], Sequence[float], float]],
    across: str,
    levels: Mapping[str, float],
) -> None:
    """Accuracy over ``across``, whose axis is logarithmic. ``curves``: name → positions, means, half of an interval;
    ``levels``: name → a horizontal line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.0), layout="constrained")
    for name, (positions, means, half) in curves.items():
        axes.errorbar(positions, means, yerr=half, marker="o", capsize=3, label=name)
    for number, (name, level) in enumerate(levels.items()):
        axes.axhline(level, color="0.4", linestyle=("-", "--", ":")[number % 3], linewidth=1, label=name)
    axes.set_xscale("log", base=2 if across == "recorded views" else 10)
    if across == "recorded views":
        axes.set_xticks(VIEWS, [str(views) for views in VIEWS])
    axes.set_xlabel(across)
    axes.set_ylabel("top-1, %")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main() -> None:
    done = recorded(FILE)
    parts = []
    for name, trials in ((name, make()) for name, make in TABLES.items()):
        runs = runs_of(trials, done)
        if sum(len(values) - 1 for values in runs.values()) > 0:
            parts.append("\n".join([f"## {name}", "", table(runs), *failures(trials, done)]))
    print("\n\n".join(parts))


if __name__ == "__main__":
    main()
