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
    missing = "\n".join(unfinished([*recipes, *deeper], cifar100))
    sections = "\n\n".join(section(name, done) for name in CASES)
    return f"""# What was measured of the defaults

How a network is optimized where nothing is said is in the presets ([training.md](training.md#presets)). For large sets
`convnet` has the rate 0.2 of the first table here: a ResNet-8 on CIFAR-100, trained in several ways, alone and
distilled. The same on other sets is prepared (`python -m benchmarks.defaults`) and said to be missing where it is. For
small sets `convnet` has what the first version of softcache had for a ResNet-50 on the digits. What losses, targets and
views reach is in [real.md](real.md).

## CIFAR-100, ways to optimize

{table(found, baseline="alone, sgd 0.2", live="")}

{commands(recipes)}

{missing}

## CIFAR-100, a deeper student

A `cifar:resnet20`, 6 epochs.

{table(runs_of(deeper, cifar100), baseline="alone, sgd 0.2", live="")}

{commands(deeper)}

{sections}

All runs: [benchmarks/results](../benchmarks/results). This page is written by `python -m benchmarks.defaults_page`.
"""


if __name__ == "__main__":
    PAGE.write_text(page(recorded(FILE), recorded(CIFAR100)), encoding="utf-8")
