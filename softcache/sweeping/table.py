"""What many runs came to, as a table: a row a combination, over its seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from softcache.sweeping.folder import Outcome
from softcache.sweeping.grid import Combination, Run, shown
from softcache.sweeping.statistics import deviation
from softcache.training.scores import SHARES, TITLES


@dataclass(frozen=True)
class Row:
    """A combination with what its runs came to."""

    combination: Combination
    runs: list[Run]
    outcomes: list[Outcome]

    @property
    def vals(self) -> list[float]:
        """On the held-out rows, of the runs that are done."""
        return [outcome.val for outcome in self.outcomes if outcome.val is not None]

    @property
    def tests(self) -> list[float]:
        """On the test split, of those where it was looked at."""
        return [outcome.test for outcome in self.outcomes if outcome.test is not None]

    @property
    def failed(self) -> int:
        """Runs that ended with an error; those that were ended early on purpose are none of them."""
        return sum(outcome.error is not None and not outcome.pruned for outcome in self.outcomes)

    @property
    def complete(self) -> bool:
        return len(self.vals) == len(self.runs)

    def to_json(self) -> dict[str, Any]:
        return {
            **{name: shown(value) for name, value in self.combination.varied.items()},
            "runs": [run.name for run in self.runs],
            "seeds": [run.seed for run in self.runs],
            "val": [outcome.val for outcome in self.outcomes],
            "test": [outcome.test for outcome in self.outcomes],
            "errors": [outcome.error for outcome in self.outcomes],
        }


@dataclass(frozen=True)
class Table:
    """``leading``: the number that is compared, ``""`` while no run is done."""

    rows: list[Row]
    leading: str

    def best(self) -> Row | None:
        """The row of the highest mean on the held-out rows, the first of equals, of those whose runs are all done."""
        complete = [row for row in self.rows if row.complete]
        return max(complete, key=lambda row: statistics.mean(row.vals)) if complete else None

    @property
    def title(self) -> str:
        """What the number is called."""
        return TITLES.get(self.leading, "score")

    @property
    def ended(self) -> int:
        """Runs that have ended."""
        return sum(outcome.ended for row in self.rows for outcome in row.outcomes)

    @property
    def size(self) -> int:
        """All runs."""
        return sum(len(row.runs) for row in self.rows)

    @property
    def failed(self) -> int:
        """Runs that ended with an error, of all rows."""
        return sum(row.failed for row in self.rows)

    def lines(self) -> tuple[list[str], list[list[str]]]:
        """A header and lines of text."""
        varied = list(dict.fromkeys(name for row in self.rows for name in row.combination.varied))
        header = [*varied, f"held-out {self.title}", "done", ""]
        best = self.best() if self.ended == self.size else None
        found = []
        for row in self.rows:
            own = [shown(row.combination.varied[name]) if name in row.combination.varied else "–" for name in varied]
            early = "ended early" if any(outcome.pruned for outcome in row.outcomes) else ""
            mark = "best" if row is best else f"{row.failed} failed" if row.failed else early
            found.append([*own, told_mean(row.vals, self.leading), f"{len(row.vals)}/{len(row.runs)}", mark])
        return header, found

    def to_json(self) -> list[dict[str, Any]]:
        return [row.to_json() for row in self.rows]


def tabled(runs: Sequence[Run], outcomes: Sequence[Outcome]) -> Table:
    """Runs and what each came to."""
    grouped: dict[int, Row] = {}
    for run, outcome in zip(runs, outcomes, strict=True):
        row = grouped.setdefault(id(run.combination), Row(run.combination, [], []))
        row.runs.append(run)
        row.outcomes.append(outcome)
    done = [outcome.leading for outcome in outcomes if outcome.result is not None]
    return Table(list(grouped.values()), done[0] if done else "")


def told_mean(values: Sequence[float], leading: str) -> str:
    """``97.21 ± 0.30 %``: the mean and the standard deviation of a single run, or a dash where there is no value."""
    if not values:
        return "–"
    share = leading in SHARES
    mean, spread = statistics.mean(values), deviation(values)
    scale, digits, unit = (100, 2, " %") if share else (1, 4, "")
    around = f" ± {scale * spread:.{digits}f}" if spread is not None else ""
    return f"{scale * mean:.{digits}f}{around}{unit}"
