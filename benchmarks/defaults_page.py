"""docs/defaults.md: the tables of what ``benchmarks.defaults`` has recorded.

python -m benchmarks.defaults_page
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.cifar100 import FILE as CIFAR100
from benchmarks.cifar100_figures import Runs
from benchmarks.cifar100_page import commands, pooled, runs_of, table, unfinished
from benchmarks.cifar100_rows import TABLES, VIEWS, row
from benchmarks.defaults import (
    CASES,
    DATA,
    DEEPER,
    DEFAULT,
    DISTILLED,
    FEWER,
    FILE,
    FINE_TUNED,
    FLOAT32,
    KINDS,
    PRETRAINED,
    VIEWED,
    WIDE,
    Case,
    rows,
    viewed,
)
from benchmarks.intervals import difference
from benchmarks.rows import recorded
from softcache.config.presets import open_preset

PAGE = Path(__file__).resolve().parents[1] / "docs" / "defaults.md"
# The sets that the rate of students alone was chosen on, for sets of up to 20,000 rows.
MIDDLE = [name for name, case in CASES.items() if case.small and case.batch == 64]
LOW, HIGH = "alone, sgd 0.2", "alone, sgd 0.4"  # the rates on both sides of that one
LOWEST, SMALL_RATE = "alone, sgd 0.025", "alone, sgd 0.3"
SMALL_DISTILLED = f"{DISTILLED}, the rate of small networks"
NOT_RUN = "(not run yet)"
TWICE = f"{DISTILLED}, twice the rate"


def section(name: str, done: Mapping[str, dict[str, Any]]) -> str:
    """The table of a set: students in ten ways by hand and by default, alone and distilled."""
    case, trials = CASES[name], rows(name)
    data = DATA[case.data]
    runs = runs_of(trials, done)
    head = (
        f"## {name}\n\n{_student(case)}, {data.rows:,} rows, {case.epochs} epochs, judged on "
        f"{data.held_out:,} training rows that are held out."
    )
    shown = table(runs, baseline=DEFAULT, live="")
    return "\n".join([head, "", shown, "", commands(trials), "", *unfinished(trials, done)])


def _student(case: Case) -> str:
    if case.student == PRETRAINED:
        return "A network that was trained on CIFAR-100"
    return case.student.format(networks="")


def summary(sets: Mapping[str, tuple[Runs, str, str]]) -> str:
    """A line for each set: how far the defaults are behind the best way by hand, and what distillation gains by them.
    ``sets``: name → its runs, and which rows are a student by the defaults, alone and distilled."""
    lines = [
        "| set | alone, % | best by hand, % | behind it | distilled, % | gain |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, (runs, default, distilled) in sets.items():
        best = best_alone(runs)
        if best is None or default not in runs:
            continue
        cells = [
            name,
            mean_of(runs, default),
            f"{mean_of(runs, best)} ({best.removeprefix('alone, ')})",
            apart(runs, best, default),
            mean_of(runs, distilled),
            apart(runs, distilled, default),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def best_alone(runs: Runs) -> str | None:
    """The best row of students on labels alone; None where there are fewer than two. Those in float32 don't count:
    float32 is compared with bfloat16 at the same rate only."""
    alone = {row: statistics.mean(values) for row, values in runs.items() if row.startswith("alone")}
    alone = {row: mean for row, mean in alone.items() if not row.endswith("float32")}
    return max(alone, key=alone.__getitem__) if len(alone) > 1 else None


def views(name: str, done: Mapping[str, dict[str, Any]]) -> str:
    """What a student of a set reaches by kind of targets and number of recorded views, as means with intervals, and
    without a teacher. The spread is that of all runs of the set."""
    trials, others = viewed(name), runs_of(rows(name), done)
    runs, alone = runs_of(trials, done), others.get(DEFAULT)
    spread = pooled({**others, **runs})
    lines = [
        f"| targets | {' | '.join(f'{v} view' + 's' * (v > 1) for v in VIEWS)} |",
        f"| --- |{' --- |' * len(VIEWS)}",
    ]
    for kind in KINDS:
        cells = [mean_of(runs, row(kind, v)) for v in VIEWS]
        if spread is not None:
            found = [runs.get(row(kind, v)) for v in VIEWS]
            cells = [f"{c} ± {spread.half_width(len(f)):.2f}" if f else c for c, f in zip(cells, found, strict=True)]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    counts = [len(values) for values in runs.values()] or [0]
    fewest, most = min(counts), max(counts)
    said = [f"Runs of each: {fewest}." if fewest == most else f"Runs of each: {fewest} to {most}."]
    if spread is not None:
        said.append(f"A single run scatters by {spread.deviation:.2f} points ({spread.freedom} degrees of freedom).")
    if alone is not None:
        said.append(f"On labels alone a student has {statistics.mean(alone):.2f} % ({len(alone)} runs).")
    shown = ["\n".join(lines), "", " ".join(said)] if runs else ["Not run yet."]
    return "\n".join([f"### {name}", "", *shown, "", commands(trials), "", *unfinished(trials, done)])


def rates(sets: Mapping[str, Runs]) -> str:
    """A line for each set: what students alone reach at the default rate and at those on both sides of it, as means
    with the numbers of their runs."""
    rate = open_preset("convnet").at(20_000, small=True)["lr"]
    lines = [f"| set | 0.2, % | {rate:g} (default), % | 0.4, % |", "| --- | --- | --- | --- |"]
    for name, runs in sets.items():
        cells = [f"{mean_of(runs, row)} ({len(runs[row])})" if row in runs else "" for row in (LOW, DEFAULT, HIGH)]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines)


def furthest_behind(sets: Mapping[str, Runs]) -> str:
    """By how many points students alone by the defaults are behind the best way, where that is most."""
    best = {name: best_alone(runs) for name, runs in sets.items() if DEFAULT in runs}
    means = [(sets[name][row], sets[name][DEFAULT]) for name, row in best.items() if row is not None]
    return f"{max(statistics.mean(a) - statistics.mean(b) for a, b in means):.2f}" if means else NOT_RUN


def said(runs: Runs, one: str, other: str) -> str:
    """How much better one row is, in the words of the page."""
    return apart(runs, one, other).removeprefix("+") or NOT_RUN


def mean_of(runs: Runs, row: str) -> str:
    return f"{statistics.mean(runs[row]):.2f}" if row in runs else ""


def apart(runs: Runs, one: str, other: str) -> str:
    """How much better one row is, with an interval where a row of this set has several runs."""
    if one == other or one not in runs or other not in runs:
        return ""
    if pooled(runs) is None:
        return f"{statistics.mean(runs[one]) - statistics.mean(runs[other]):+.2f}"
    found = difference(runs, one, other)
    return f"{found[0]:+.2f} ± {found[1]:.2f}"


def page(done: Mapping[str, dict[str, Any]], cifar100: Mapping[str, dict[str, Any]]) -> str:
    recipes, deeper = TABLES["recipes"](), TABLES["deeper"]()
    found = runs_of(recipes, cifar100)
    missing = ["\n".join(unfinished(rows_of, cifar100)) for rows_of in (recipes, deeper)]
    sections = "\n\n".join(section(name, done) for name, case in CASES.items() if case.distilled_chosen_on)
    others = "\n\n".join(section(name, done) for name, case in CASES.items() if not case.distilled_chosen_on)
    sets = {"cifar100": (found, "alone, sgd 0.4", "distilled, sgd 0.2")}
    each = {name: runs_of(rows(name), done) for name in CASES}
    sets |= {name: (runs, DEFAULT, DISTILLED) for name, runs in each.items()}
    middle, fewer, deep = {name: each[name] for name in MIDDLE}, each[FEWER], each[DEEPER]
    fashion, taught, wide = each["fashionmnist"], each[FINE_TUNED], each[WIDE]
    few, flowers = each["fashionmnist, 2,500 rows"], each["flowers"]
    over_views = "\n\n".join(views(name, done) for name, case in CASES.items() if case.data in VIEWED)
    return f"""# What was measured of the defaults

How a network is optimized where nothing is said is in the presets ([training.md](training.md#presets)). This page has
the tables that `convnet` and the default loss were chosen on, for each size of set that the preset tells apart, and
those that the other presets were tried on: ways to optimize a student on labels alone, and losses and targets. Each row
of a set has the same epochs. What runs are missing is said; `python -m benchmarks.cifar100` and
`python -m benchmarks.defaults` make them. A row's runs may have been made on several machines, each with a teacher that
the same command had taught there, by the defaults that were in force. Targets and numbers of views on all of CIFAR-100
are in [real.md](real.md).

What was chosen, and why:

- **Small networks**, of fewer than 2 million parameters and without grouped convolutions, have rates of their own. A
  ResNet-18, which has 11 million, reaches {said(wide, LOWEST, SMALL_RATE)} points more at 0.025 than at 0.3, the rate
  of small networks, on 3,200 pictures of ten classes, alone, and {said(wide, DISTILLED, SMALL_DISTILLED)} more at 0.025
  than at 0.2 when it is distilled. For 64 samples 0.025 is the usual rate of such networks: 0.1 for 256. They weren't
  tried on larger sets: 0.05 for 128 samples follows from the same rule. Networks with grouped convolutions have these
  rates too because published recipes have still lower ones for them (`crd-cifar-mobile`). The MobileNetV3 below can't
  be judged: its batch norms follow too slowly for so few batches, which `train` warns of.
- **Large sets**, small networks: SGD with batches of 128, at the rate 0.4 for labels alone, the best of those tried for
  both students of CIFAR-100, and at 0.2 for distilled students: a ResNet-20 loses 3 points at 0.4, and a ResNet-8
  nothing at 0.2. **Up to 20,000 rows**: batches of 64, at the rate 0.3 for labels alone and at 0.2 for distilled
  students. For labels alone the second table below has three sets of this size, and no rate is the best on all of them.
  0.4 is better than 0.2 by {said(fewer, HIGH, LOW)} points on 5,000 rows of CIFAR-100 and by
  {said(fashion, HIGH, LOW)} on 12,000 rows of Fashion-MNIST; on 10,000 rows of CIFAR-100, with a deeper student, 0.2 is
  better than 0.4 by {said(deep, LOW, HIGH)}. At 0.3, between the two, a student is at most {furthest_behind(middle)}
  points behind the best way that was tried on the same set. For distilled students 0.4 is no better than 0.2 on
  Fashion-MNIST, and worse by {said(fewer, DISTILLED, TWICE)} points on 5,000 rows of CIFAR-100.
- **Small sets**: SGD in batches of 32, at 0.05 for distilled students, and at 0.1 for small networks on labels alone:
  these are better by {said(few, "alone, sgd 0.1", "alone, sgd 0.05")} points for it on 2,500 rows of Fashion-MNIST. A
  ResNet-18 on photographs of flowers is worse by {said(flowers, "alone, sgd 0.05", "alone, sgd 0.1")} at 0.1, so that
  networks that aren't small have 0.05 there. Half and twice the rate are no better for distilled students. AdamW at
  0.002, the choice before, was 4 points worse for a distilled student of Fashion-MNIST, and no better on flowers and
  digits.
- **The loss**: `dist`. Of the losses that were tried it is the best on CIFAR-100, whose teacher has small logits, and
  on Fashion-MNIST with 12,000 and with 2,500 rows. On the flowers with a teacher that saw nothing else, `kl` at T 2 and
  `nkd` were 4 points better in one run, of which 180 pictures are judged. With few labels it was level with `kl` while
  AdamW was the default, and `nkd` and `wsld`, which need labels, failed. For a perceptron `kl` at T 1 was 0.6 points
  better.
- **Sets that the defaults of distilled students were not chosen on**: 5,000 and 10,000 rows of CIFAR-100, and the
  flowers with a fine-tuned teacher, of which more below. A student
  that is distilled by the defaults is better than one alone by {said(fewer, DISTILLED, DEFAULT)} points on the 5,000
  rows and by {said(deep, DISTILLED, DEFAULT)} on the 10,000. On the 5,000 rows the loss and its T are the best of those
  that were tried; on the 10,000 no other loss was tried yet. For students alone these sets say nothing of how well the
  default rate holds elsewhere, because it was chosen on them. Each of the two defaults before it was behind on the next
  set that was looked at: 0.2 was behind 0.4 on the 5,000 rows; 0.4, which was chosen with their help, was behind 0.2 on
  the 10,000, by less than its interval. So on another set a student alone may reach one or two points more at another
  rate.
- **Precision**: in float32 instead of bfloat16 the accuracy of a student alone on the 5,000 rows changes by
  {apart(fewer, f"{LOW}, float32", LOW) or NOT_RUN} points at the rate 0.2, and by
  {apart(fewer, FLOAT32, DEFAULT) or NOT_RUN} at the default.
- **Where a student can't gain**: on the digits with all labels, where students alone and their teacher are both right
  about 99 %; and on the flowers from a teacher that saw nothing but the same 540 photographs, and is right about 76 %
  of the others, as students alone are when they are optimized well. From a network that had learnt from CIFAR-100
  before, and was fine-tuned to these photographs, a student by the defaults gains
  {said(taught, DISTILLED, DEFAULT)} points.

Most rows are one run, of seed 0: differences of a point between two of them may be chance. The best by hand is the
best of up to ten ways in hindsight, so that it looks a little better than it is.

{summary(sets)}

Students alone at three rates, on the sets of up to 20,000 rows, in batches of 64. In brackets: the number of runs.

{rates(middle)}

## CIFAR-100, ways to optimize

{table(found, baseline="alone, sgd 0.2", live="")}

{commands(recipes)}

{missing[0]}

## CIFAR-100, a deeper student

A `cifar:resnet20`, 6 epochs.

{table(runs_of(deeper, cifar100), baseline="alone, sgd 0.2", live="")}

{commands(deeper)}

{missing[1]}

{sections}

## Sets that the defaults of distilled students were not chosen on

The same rows with other teachers: how far the choices for distilled students hold elsewhere. The rate for labels alone
was chosen on the rows of CIFAR-100 too. The flowers are the same photographs as above, at half the width, with another
student, and a teacher that had learnt from CIFAR-100 before.

{others}

## Targets and numbers of views

Students as above, distilled by default with each kind of targets from 1 to 8 recorded views. *Matched*: recorded views
and what the teacher said of each. *Mean*: fresh views in every epoch, and the mean of what the teacher said of the
recorded ones. *Both*: one half of each batch is of either kind.

{over_views}

All runs: [benchmarks/results](../benchmarks/results). This page is written by `python -m benchmarks.defaults_page`.
"""


if __name__ == "__main__":
    PAGE.write_text(page(recorded(FILE), recorded(CIFAR100)), encoding="utf-8")
