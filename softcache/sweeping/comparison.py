"""Rows of runs beside each other: mean, deviation, and the difference to the first row, seed by seed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from softcache.sweeping.folder import Outcome
from softcache.sweeping.statistics import Paired, deviation, paired
from softcache.sweeping.table import Row, Table, told_mean
from softcache.training.scores import SHARES, TITLES, told


@dataclass(frozen=True)
class Comparison:
    """``table``: with a row of runs for the student alone, then for each that is distilled. ``teachers``: name → score
    on the test split. ``on``: ``test``, or ``val`` where there is no test split."""

    table: Table
    teachers: Mapping[str, float]
    on: str

    def scores(self, row: Row) -> dict[int, float]:
        """Of the runs that are done, by seed."""
        values = {run.seed: self._score(outcome) for run, outcome in zip(row.runs, row.outcomes, strict=True)}
        return {seed: value for seed, value in values.items() if value is not None}

    def difference(self, row: Row) -> Paired | None:
        """Of a row to the first one, over the seeds that both have; None for the first itself and without any."""
        first, own = self.scores(self.table.rows[0]), self.scores(row)
        seeds = sorted(first.keys() & own.keys())
        if row is self.table.rows[0] or not seeds:
            return None
        return paired([own[seed] for seed in seeds], [first[seed] for seed in seeds])

    def lines(self) -> tuple[list[str], list[list[str]]]:
        """A header and lines of text."""
        where = "test" if self.on == "test" else "held-out"
        leading = self.table.leading
        header = ["", f"{where} {TITLES.get(leading, 'score')}", "done", "difference to alone (95 %)", "p"]
        lines = [[f"teacher {name}", told(leading, value), "", "", ""] for name, value in self.teachers.items()]
        for row in self.table.rows:
            values = list(self.scores(row).values())
            found = self.difference(row)
            lines.append(
                [
                    str(row.combination.varied["row"]),
                    told_mean(values, leading),
                    f"{len(values)}/{len(row.runs)}",
                    *(_told(found, leading) if found is not None else ("", "")),
                ]
            )
        return header, lines

    def to_json(self) -> dict[str, Any]:
        found = []
        for row in self.table.rows:
            values, difference = self.scores(row), self.difference(row)
            found.append(
                {
                    "row": row.combination.varied["row"],
                    "scores": {str(seed): value for seed, value in values.items()},
                    "mean": statistics.mean(values.values()) if values else None,
                    "deviation": deviation(list(values.values())),
                    "difference": difference and difference.__dict__,
                    "errors": [outcome.error for outcome in row.outcomes if outcome.error is not None],
                    "runs": [run.name for run in row.runs],
                }
            )
        return {"score": f"{self.on}_{self.table.leading}", "teachers": dict(self.teachers), "rows": found}

    def _score(self, outcome: Outcome) -> float | None:
        return outcome.test if self.on == "test" else outcome.val


def compared(table: Table, teachers: Mapping[str, float]) -> Comparison:
    """On the test split where any run was evaluated there."""
    return Comparison(table, teachers, "test" if any(row.tests for row in table.rows) else "val")


def _told(found: Paired, leading: str) -> Sequence[str]:
    scale, digits, unit = (100, 2, " points") if leading in SHARES else (1, 4, "")
    around = f" ± {scale * found.half_width:.{digits}f}" if found.half_width is not None else ""
    return f"{scale * found.mean:+.{digits}f}{around}{unit}", f"{found.p:.2g}" if found.p is not None else ""
