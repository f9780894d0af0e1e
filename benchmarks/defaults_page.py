"""docs/defaults.md: the tables of what ``benchmarks.defaults`` has recorded.

python -m benchmarks.defaults_page
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.cifar100 import FILE as CIFAR100
from benchmarks.cifar100_page import commands, runs_of, table, unfinished
from benchmarks.cifar100_rows import TABLES
from benchmarks.defaults import CASES, DATA, FILE, rows
from benchmarks.rows import recorded

PAGE = Path(__file__).resolve().parents[1] / "docs" / "defaults.md"


def section(name: str, done: Mapping[str, dict[str, Any]]) -> str:
    """The table of a set: students in ten ways by hand and by default, alone and distilled."""
    case, trials = CASES[name], rows(name)
    data = DATA[case.data]
    runs = runs_of(trials, done)
    head = (
        f"## {name}\n\n{case.student.format(networks='')}, {data.rows:,} rows, {case.epochs} epochs, judged on "
        f"{data.held_out:,} training rows that are held out."
    )
    shown = table(runs, baseline="alone, default", live="")
    return "\n".join([head, "", shown, "", commands(trials), "", *unfinished(trials, done)])


def page(done: Mapping[str, dict[str, Any]], cifar100: Mapping[str, dict[str, Any]]) -> str:
    recipes, deeper = TABLES["recipes"](), TABLES["deeper"]()
    found = runs_of(recipes, cifar100)
    missing = ["\n".join(unfinished(rows_of, cifar100)) for rows_of in (recipes, deeper)]
    sections = "\n\n".join(section(name, done) for name in CASES)
    return f"""# What was measured of the defaults

How a network is optimized where nothing is said is in the presets ([training.md](training.md#presets)). This page has
the tables that `convnet` and the default loss were chosen on, for each size of set that the preset tells apart: ways to
optimize a student on labels alone, and losses and targets. Each row of a set has the same epochs. What runs are missing
is said; `python -m benchmarks.cifar100` and `python -m benchmarks.defaults` make them. Targets and numbers of views on
CIFAR-100 are in [real.md](real.md).

What was chosen, and why:

- **Large sets**: SGD with the rate 0.4 for batches of 128, the best of those tried for both students of CIFAR-100; **up
  to 20,000 rows** 0.2 for batches of 64, within 0.2 points of the best on Fashion-MNIST.
- **Small sets**: AdamW with 0.002, the best of those tried on photographs of flowers. On the digits nearly everything
  is within the spread, but with few labels 0.01 is clearly better there.
- **The loss**: `dist`. Of the losses that were tried it is the best on CIFAR-100, whose teacher has small logits, on
  Fashion-MNIST and on the flowers. With few labels it is level with `kl`, and `nkd` and `wsld`, which need labels,
  fail. For a perceptron `kl` at T 1 was 0.6 points better.
- **Where a student can't gain**: on the digits with all labels, where students alone and their teacher are both right
  about 99 %.

Most rows are one run, of seed 0: differences of a point between two of them may be chance.

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

All runs: [benchmarks/results](../benchmarks/results). This page is written by `python -m benchmarks.defaults_page`.
"""


if __name__ == "__main__":
    PAGE.write_text(page(recorded(FILE), recorded(CIFAR100)), encoding="utf-8")
