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
from benchmarks.cifar100_rows import TABLES
from benchmarks.defaults import CASES, DATA, DEFAULT, DISTILLED, FILE, FLOAT32, PRETRAINED, Case, rows
from benchmarks.intervals import difference
from benchmarks.rows import recorded

PAGE = Path(__file__).resolve().parents[1] / "docs" / "defaults.md"


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
        alone = {row: values for row, values in runs.items() if row.startswith("alone") and row != FLOAT32}
        if default not in alone or len(alone) < 2:
            continue
        best = max(alone, key=lambda row: statistics.mean(alone[row]))
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


def mean_of(runs: Runs, row: str) -> str:
    return f"{statistics.mean(runs[row]):.2f}" if row in runs else ""


def apart(runs: Runs, one: str, other: str) -> str:
    """How much better one row is, with an interval where a row of this set has several runs."""
    if one == other or one not in runs:
        return ""
    if pooled(runs) is None:
        return f"{statistics.mean(runs[one]) - statistics.mean(runs[other]):+.2f}"
    found = difference(runs, one, other)
    return f"{found[0]:+.2f} ± {found[1]:.2f}"


def page(done: Mapping[str, dict[str, Any]], cifar100: Mapping[str, dict[str, Any]]) -> str:
    recipes, deeper = TABLES["recipes"](), TABLES["deeper"]()
    found = runs_of(recipes, cifar100)
    missing = ["\n".join(unfinished(rows_of, cifar100)) for rows_of in (recipes, deeper)]
    sections = "\n\n".join(section(name, done) for name, case in CASES.items() if case.chosen_on)
    others = "\n\n".join(section(name, done) for name, case in CASES.items() if not case.chosen_on)
    sets = {"cifar100": (found, "alone, sgd 0.4", "distilled, sgd 0.2")}
    sets |= {name: (runs_of(rows(name), done), DEFAULT, DISTILLED) for name in CASES}
    return f"""# What was measured of the defaults

How a network is optimized where nothing is said is in the presets ([training.md](training.md#presets)). This page has
the tables that `convnet` and the default loss were chosen on, for each size of set that the preset tells apart: ways to
optimize a student on labels alone, and losses and targets. Each row of a set has the same epochs. What runs are missing
is said; `python -m benchmarks.cifar100` and `python -m benchmarks.defaults` make them. Targets and numbers of views on
CIFAR-100 are in [real.md](real.md).

What was chosen, and why:

- **Large sets**: SGD with batches of 128, at the rate 0.4 for labels alone, the best of those tried for both students
  of CIFAR-100, and at 0.2 for distilled students: a ResNet-20 loses 3 points at 0.4, and a ResNet-8 nothing at 0.2.
  **Up to 20,000 rows** batches of 64 at the same two rates: for labels alone 0.4 is the best of ten ways on 12,000 rows
  of Fashion-MNIST, by little, and on 5,000 rows of CIFAR-100, by 1.8 points over 0.2, which was the default before.
  Distilled students are no better at 0.4 on either.
- **Small sets**: SGD at 0.05 for batches of 32. Alone, 0.1 is 2 to 4 points better on 2,500 rows of Fashion-MNIST and
  on digits with few labels, and 17 worse on photographs of flowers, so that 0.05 is a choice between them. Half and
  twice the rate are no better for distilled students. AdamW at 0.002, the choice before, was 4 points worse for a
  distilled student of Fashion-MNIST, and no better on flowers and digits.
- **The loss**: `dist`. Of the losses that were tried it is the best on CIFAR-100, whose teacher has small logits, and
  on Fashion-MNIST with 12,000 and with 2,500 rows. On the flowers, where nothing is to be gained, `kl` at T 2 and `nkd`
  were 4 points better in one run, of which 180 pictures are judged. With few labels it was level with `kl` while AdamW
  was the default, and `nkd` and `wsld`, which need labels, failed. For a perceptron `kl` at T 1 was 0.6 points better.
- **Sets that nothing was chosen on.** The 5,000 rows of CIFAR-100 were such a set until the rate for labels alone was
  taken from it: with the default before, 0.2, a student alone was 1.76 ± 0.93 points behind the best way by hand. All
  else there is as it was chosen elsewhere: a student that is distilled by the defaults is better than alone by several
  times the spread, and the loss and its T are the best of those tried. The 10,000 rows of the last line, with a deeper
  student, came after that. On the 5,000 rows a student alone at the rate 0.2 was about a point better in float32 than
  in bfloat16, in all three seeds; on the other sets that is not so, but for one run.
- **Where a student can't gain**: on the digits with all labels, where students alone and their teacher are both right
  about 99 %; and on the flowers, whose teacher, a network that saw the same 540 photographs, is right about 76 % of the
  others, as students alone are when they are optimized well.

Most rows are one run, of seed 0: differences of a point between two of them may be chance. The best by hand is the
best of up to ten ways in hindsight, so that it looks a little better than it is.

{summary(sets)}

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

## Sets that nothing was chosen on

The same rows on other sets and with another teacher: how far the choices above hold elsewhere.

{others}

All runs: [benchmarks/results](../benchmarks/results). This page is written by `python -m benchmarks.defaults_page`.
"""


if __name__ == "__main__":
    PAGE.write_text(page(recorded(FILE), recorded(CIFAR100)), encoding="utf-8")
