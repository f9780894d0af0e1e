"""docs/real.md: the tables of what ``benchmarks.cifar100`` has recorded.

python -m benchmarks.cifar100_page
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cifar100 import FILE, HELD_OUT
from benchmarks.cifar100_rows import TABLES
from benchmarks.intervals import Pooled, as_good, better, difference, pool
from benchmarks.measure import in_words
from benchmarks.rows import Trial, recorded

PAGE = Path(__file__).resolve().parents[1] / "docs" / "real.md"
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
    """Mean and the differences from the student alone and from the live teacher, with intervals where a row has several
    runs."""
    try:
        spread: Pooled | None = pool(runs)
    except ValueError:
        spread = None
    others = [(other, verdict) for other, verdict in ((baseline, _better), (live, _as_good)) if other in runs]
    heads = ["student", "runs", "top-1, %", *(f"against *{other}*" for other, _ in others)]
    lines = [f"| {' | '.join(heads)} |", f"| {' | '.join('---' for _ in heads)} |"]
    for name, values in runs.items():
        reached = f"{statistics.mean(values):.2f}"
        if spread is not None:
            reached += f" ± {spread.half_width(len(values)):.2f}"
        cells = [_against(runs, spread, name, other, verdict) for other, verdict in others]
        lines.append(f"| {' | '.join([name, str(len(values)), reached, *cells])} |")
    if spread is None:
        note = "Each row is one run, so nothing is known of the spread: differences of a point may be chance."
    else:
        note = f"A single run scatters by {spread.deviation:.2f} points ({spread.freedom} degrees of freedom)."
    return "\n".join([*lines, "", note])


def _against(
    runs: Runs, spread: Pooled | None, name: str, other: str, verdict: Callable[[tuple[float, float]], str]
) -> str:
    if name == other:
        return ""
    if spread is None:
        return f"{statistics.mean(runs[name]) - statistics.mean(runs[other]):+.2f}"
    found = difference(runs, name, other)
    return f"{found[0]:+.2f} ± {found[1]:.2f}: {verdict(found)}"


def _better(found: tuple[float, float]) -> str:
    return "better" if better(found) else "worse" if better((-found[0], found[1])) else "not shown"


def _as_good(found: tuple[float, float]) -> str:
    return "as good" if as_good(found, MARGIN) else "not shown"


def commands(trials: Sequence[Trial], runs: Runs) -> str:
    """Row → its command, once."""
    shown = {trial.name: trial.command for trial in trials if trial.name in runs}
    width = max(map(len, shown))
    return "\n".join(f"    {name:{width}}  softcache {command}" for name, command in shown.items())


def unfinished(trials: Sequence[Trial], done: Mapping[str, dict[str, Any]]) -> list[str]:
    """One line for each run that failed, and one for those that are still to be made."""
    failed = [trial for trial in trials if "failed" in done.get(trial.key, {})]
    lines = [f"- Failed: {trial.name}, seed {trial.seed}: {done[trial.key]['failed']}" for trial in failed]
    missing = [trial for trial in trials if trial.key not in done]
    if missing:
        lines.append(f"- Not run yet: {len(missing)} of {len(trials)} runs.")
    return lines


def page(done: Mapping[str, dict[str, Any]]) -> str:
    trials = TABLES["screen"]()
    screen = runs_of(trials, done)
    newest = max(done.values(), key=lambda record: record["date"])
    missing = "\n".join(unfinished(trials, done))
    return f"""# On a real set: CIFAR-100

A `cifar:resnet8` (78,000 parameters) learns for 12 epochs from a teacher that others trained: KAIST's MicroNet with
477,000 parameters, 81.1 % on CIFAR-100's test split, trained with CutMix and AutoAugment. So its logits are small, with
a standard deviation of 1.3 and a maximum of 11.5.

These tables are for choosing. They train on the first 45,000 training rows and show the accuracy on the other
{HELD_OUT:,}; the test split hasn't been looked at. Rows that say nothing else use all 8 recorded views with the recipe
`crop:pad=4+flip`.

## Losses, targets and views

{table(screen)}

{commands(trials, screen)}

## What is missing

{missing}

The student is optimized in one way here; which ways suit it is in [defaults.md](defaults.md), and a higher learning
rate narrows the distance between alone and distilled. Every run is a line of
[benchmarks/results/cifar100.jsonl](../benchmarks/results/cifar100.jsonl), failures too. `python -m benchmarks.cifar100
--place DIR --data cifar100 --teacher … screen` makes the rows that are missing; `python -m
benchmarks.cifar100_page` writes this page. The runs were made on {in_words(newest)}.
"""


if __name__ == "__main__":
    PAGE.write_text(page(recorded(FILE)), encoding="utf-8")
