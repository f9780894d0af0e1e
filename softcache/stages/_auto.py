"""``softcache sweep --auto``: settings that are worth a try, then the neighbours of the best, then fresh seeds.

What is trained next depends on the time that is left, so two searches need not try the same. Each round of students is
written down in ``rounds/`` before it is trained, and ``spent.json`` has the time that went by: an interrupted search
goes on where it was, with the time that it had left.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from softcache import strictjson
from softcache.atomic import replace_file
from softcache.config.folders import make_folder
from softcache.config.train import TrainConfig
from softcache.console import duration
from softcache.errors import SoftcacheError
from softcache.stages._cohort import resolve
from softcache.stages._many import Settled, Trainers, refuse_all_failed, table
from softcache.stages._pruning import bars, epochs_of
from softcache.sweeping.auto import FACTORS, SEARCHED, Point, neighbours, point_of, portfolio
from softcache.sweeping.folder import ROUNDS, ManyFolder
from softcache.sweeping.grid import Run, chosen_combination, cohorts, combinations, runs
from softcache.sweeping.table import Row, Table

log = logging.getLogger(__name__)
SPENT = "spent.json"
VERSION = 1
FIRST, FINALISTS = 10, 3  # settings that are tried anywhere; those that are trained again
# The share of the budget that is kept for fresh seeds at most, and what a round may take more than rounds before it.
FINAL_SHARE, MARGIN, OPENING_S = 0.4, 1.1, 1.0
# A student that is near the best one so far is worth more patience than one that is drawn: it ends early from half of
# the epochs on, where three quarters of those before were better.
PRUNED_FROM, PRUNED_BELOW = 1 / 2, 1 / 4


class Clock:
    """The time of a search: ``budget`` seconds, over all commands that work on it."""

    def __init__(self, folder: Path, budget: float, began: float):
        self._path, self.budget = folder / SPENT, budget
        before = strictjson.loads(self._path.read_bytes())["seconds"] if self._path.exists() else 0.0
        self._zero = began - before

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._zero

    def at(self, elapsed: float) -> float:
        """When so many seconds will have gone by, on the monotonic clock."""
        return self._zero + elapsed

    def keep(self) -> None:
        document = {"version": VERSION, "seconds": self.elapsed}
        replace_file(self._path, (json.dumps(document) + "\n").encode())

    def keeping(self, shown: Callable[[Table], None] | None) -> Callable[[Table], None]:
        """``shown``, which also keeps the time."""

        def both(table: Table) -> None:
            self.keep()
            if shown is not None:
                shown(table)

        return both


@dataclass(frozen=True)
class Round:
    """Students that are trained together: ``values``: the searched options of each setting; ``fresh``: whether these
    are the finalists; ``level``: of ``FACTORS``, by which they were found."""

    values: list[dict[str, Any]]
    seeds: list[int]
    at_once: int
    fresh: bool = False
    level: int = 0

    def save(self, path: Path) -> None:
        document = {"version": VERSION, **asdict(self)}
        replace_file(path, (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())

    @classmethod
    def read(cls, path: Path) -> Round:
        """Errors: ``SoftcacheError`` where the file isn't one of a round."""
        try:
            document = strictjson.loads(path.read_bytes())
            if document.pop("version") != VERSION:
                raise SoftcacheError(f"{path} is not of version {VERSION}, which this softcache knows")
            read = cls(**document)
            if not all(set(values) <= set(SEARCHED) for values in read.values):
                raise SoftcacheError(f"{path} has other options than {', '.join(SEARCHED)}")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SoftcacheError(f"{path} is not a round of a sweep: {error}") from None
        return read

    def points(self) -> list[Point]:
        whole = [{**dict.fromkeys(SEARCHED), **values} for values in self.values]
        return [Point(**{**values, "loss": tuple(values["loss"])}) for values in whole]


@dataclass(frozen=True)
class Found:
    """``searched``: all settings, each with one student; ``finalists``: the best of them with students of fresh seeds,
    None where there was no time for any; ``best``: the row of the one that was chosen, of the finalists where there are
    any."""

    searched: Table
    finalists: Table | None
    best: Row | None


def search_within(many: ManyFolder, settled: Settled, trainers: Trainers, clock: Clock) -> Found:
    """Trains settings until the budget is spent, or there is nothing left to try, and then some of the best anew.

    Errors: ``UsageError`` for options that can't be, ``SoftcacheError`` where no student is trained to the end in time.
    """
    return _Search(many, settled, trainers, clock).run()


def students_of(many: ManyFolder, settled: Settled) -> list[Run]:
    """Those of all rounds that there are."""
    options = settled.specification.of_train
    found = [_runs(options, Round.read(path)) for path in sorted((many.path / ROUNDS).glob("[0-9]*.json"))]
    return [run for part in found for run in part]


def default_point(many: ManyFolder, settled: Settled) -> Point:
    """What is trained where nothing is searched; its folder isn't made.

    Errors: ``UsageError`` for options that can't be.
    """
    (given,) = combinations(settled.specification.of_train)
    (found,) = resolve([TrainConfig.of(**given.options, test=False, out=str(many.run_folder("default")))])
    if isinstance(found, SoftcacheError):
        raise found
    return point_of(found.options)


@dataclass
class _Search:
    many: ManyFolder
    settled: Settled
    trainers: Trainers
    clock: Clock
    fresh: list[Run] = field(default_factory=list)
    level: int = 0
    _tried: dict[Point, Run] = field(default_factory=dict)
    _waves: float = 0.0  # students that each process has trained, one after the other; parts of them count too
    _seconds: float = 0.0
    _last: float = 0.0

    def run(self) -> Found:
        number = 0
        make_folder(self.many.path / ROUNDS)
        while True:
            path = self.many.path / ROUNDS / f"{number:04d}.json"
            if path.exists():
                now = Round.read(path)
            else:
                decided = self._decide()
                if decided is None:
                    break
                now = decided
                now.save(path)
            self._train(now)
            number += 1
            if now.fresh:
                break
            if not self._done():
                refuse_all_failed(table(self.many, self.searched))
                raise SoftcacheError(
                    f"no student was trained to the end in {duration(self.clock.elapsed)}: give more --budget than "
                    f"{self.settled.specification.options['budget']}, or fewer --epochs"
                )
        searched = table(self.many, self.searched)
        finalists = table(self.many, self._fresh_of_all())
        best = finalists.best()
        return Found(searched, None, searched.best()) if best is None else Found(searched, finalists, best)

    @property
    def searched(self) -> list[Run]:
        """The students of all settings, in the order in which these were tried."""
        return list(self._tried.values())

    def _fresh_of_all(self) -> list[Run]:
        """Fresh students of the seeds that every finalist has, so that all are compared by the same."""
        done = [run for run in self.fresh if self.many.outcome(run.name).result is not None]
        finalists = {id(run.combination) for run in done}
        each = Counter(run.seed for run in done)
        return [run for run in done if each[run.seed] == len(finalists)]

    def _decide(self) -> Round | None:
        """The next round: None where there is no time for one."""
        seed, processes = self.settled.seeds[0], self.settled.processes
        if not self._tried:
            default = default_point(self.many, self.settled)
            first = portfolio(default, self._fixed)[: max(2, processes)]
            log.info(f"settings are searched for {duration(self.clock.budget)}, results in {self.many.path}")
            return self._round(first, [seed])
        points = self._next_points()
        waves = math.floor((self._search_until - self.clock.elapsed) / (self._each * MARGIN))
        points = points[: max(0, waves) * processes]
        return self._round(points, [seed]) if points else self._final()

    @property
    def _fixed(self) -> set[str]:
        return set(SEARCHED) & self.settled.specification.of_train.keys()

    def _next_points(self) -> list[Point]:
        default = next(iter(self._tried))
        left = [point for point in portfolio(default, self._fixed) if point not in self._tried]
        if left:
            return left
        best = self._ranked()[0]
        for level in range(self.level, len(FACTORS)):
            around = [one for one in neighbours(best, FACTORS[level], self._fixed) if one not in self._tried]
            if around:
                self.level = level
                return around
        return []

    def _final(self) -> Round | None:
        """The best, and what is trained by default, with as many fresh seeds as there is time for."""
        default, ranked = next(iter(self._tried)), self._ranked()
        left = self.clock.budget - self._testing - self.clock.elapsed
        for finalists, seeds in self._finals():
            if self._wall(finalists * seeds) * MARGIN <= left:
                others = [point for point in ranked if point != default]
                chosen = [*others[: finalists - 1], default] if default in ranked else ranked[:finalists]
                chosen = sorted(chosen, key=ranked.index) if finalists > 1 else ranked[:1]
                return self._round(chosen, self.settled.seeds[1 : 1 + seeds], fresh=True)
        log.warning("there is no time to train the best again with fresh seeds: give more --budget for that")
        return None

    def _finals(self) -> list[tuple[int, int]]:
        """Numbers of finalists and of their seeds, the best first."""
        most, seeds = min(FINALISTS, len(self._done())), len(self.settled.seeds) - 1
        found = [(finalists, seeds) for finalists in range(most, 1, -1)]
        found += [(2, fewer) for fewer in range(seeds - 1, 0, -1) if most > 1]
        return found + [(1, fewer) for fewer in range(seeds, 0, -1)]

    @property
    def _search_until(self) -> float:
        """When fresh seeds have to begin."""
        each = (self._wall(finalists * seeds) * MARGIN**2 for finalists, seeds in self._finals())
        kept = next((wall for wall in each if wall <= FINAL_SHARE * self.clock.budget), 0.0)
        return self.clock.budget - self._testing - kept

    @property
    def _each(self) -> float:
        """Seconds that a process takes for a student: as all of them took, or the last ones where these took longer."""
        return max(self._seconds / self._waves, self._last) if self._waves else 0.0

    def _wall(self, students: int) -> float:
        return math.ceil(students / self.settled.processes) * self._each

    @property
    def _testing(self) -> float:
        """Seconds that are kept to look at the test split: for each student that is chosen about an epoch, and what it
        takes to open it."""
        lengths = [len(epochs_of(self.many, self._tried[point])) for point in self._done()]
        return (self._each / max([1, *lengths]) + OPENING_S) * (len(self.settled.seeds) - 1)

    def _done(self) -> list[Point]:
        return [point for point, run in self._tried.items() if self.many.outcome(run.name).result is not None]

    def _ranked(self) -> list[Point]:
        """Those that are trained, the best on held-out rows first, the earlier of equals."""
        vals = [(self.many.outcome(self._tried[point].name).val, point) for point in self._done()]
        return [point for val, point in sorted(vals, key=lambda pair: -float(pair[0] or 0.0))]

    def _round(self, points: Sequence[Point], seeds: list[int], *, fresh: bool = False) -> Round:
        # At most the students of one seed at once, so that whole seeds are there where the time is up before all are.
        at_once = max(1, min(self.settled.specification.at_once, math.ceil(len(points) / self.settled.processes)))
        return Round([point.values() for point in points], seeds, at_once, fresh, self.level)

    def _train(self, now: Round) -> None:
        own = _runs(self.settled.specification.of_train, now)
        prune = bool(self.settled.specification.options.get("prune", True)) and not now.fresh
        needed = bars(self.many, self.searched, PRUNED_FROM, PRUNED_BELOW) if prune else {}
        until = self.clock.budget - self._testing if now.fresh or not self._waves else self._search_until
        parts = cohorts(own, now.at_once)
        self.trainers.train(own, parts, last=now.fresh, bars=needed, until=self.clock.at(until))
        self.clock.keep()
        if now.fresh:
            self.fresh = own
        else:
            self._tried |= dict(zip(now.points(), own, strict=True))
            self.level = max(self.level, now.level)
        lengths = [len(epochs_of(self.many, run)) for run in own]
        waves = sum(lengths) / max([1, *lengths]) / min(self.settled.processes, len(own))
        took = sum(map(self._trained_for, parts)) / min(self.settled.processes, len(parts))
        self._last = took / waves if waves else 0.0
        self._waves, self._seconds = self._waves + waves, self._seconds + took

    def _trained_for(self, cohort: Sequence[Run]) -> float:
        """Seconds that a cohort has taken, by what its students have written down: so it is known of those too that
        another command has trained. What it takes to start processes comes once, and is no part of it."""
        seconds = [sum(line["epoch_s"] + line["eval_s"] for line in epochs_of(self.many, run)) for run in cohort]
        return max(seconds) + OPENING_S


def _runs(options: dict[str, Any], now: Round) -> list[Run]:
    return runs([chosen_combination(options, values) for values in now.values], now.seeds)
