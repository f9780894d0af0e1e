"""Train a grid of students from one cache and choose by held-out rows: ``softcache sweep``."""

from __future__ import annotations

import json
import logging
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softcache.atomic import replace_file
from softcache.config.folders import pick_cache
from softcache.config.parsed import parse
from softcache.config.several import GRID
from softcache.config.sweep import SweepConfig, budget_seconds
from softcache.config.train import TrainConfig
from softcache.console import counted
from softcache.distributed import refuse_several
from softcache.errors import SoftcacheError, UsageError
from softcache.remembered import allowing_too
from softcache.stages._auto import FIRST, Clock, search_within, students_of
from softcache.stages._cohort import resolve
from softcache.stages._crew import crew
from softcache.stages._many import Settled, Trainers, look_at_test, opened, refuse_all_failed, settle, table
from softcache.stages._trials import drawn, first_values, round_size, search
from softcache.sweeping.command import train_command
from softcache.sweeping.folder import ManyFolder
from softcache.sweeping.grid import Combination, Run, cohorts, combinations, runs
from softcache.sweeping.grid import shown as shown_value
from softcache.sweeping.table import Row, Table
from softcache.tracking._specs import check_trackers

log = logging.getLogger(__name__)
TABLE = "table.json"
# A sweep chooses by held-out rows, and its students of several seeds share a stream.
DEFAULTS = {"val_fraction": 0.1, "order_seed": 0}
AUTO = {"budget": "30m", "seeds": 3}


@dataclass(frozen=True)
class Planned:
    """What a sweep would do: ``students``, ``cohorts``, ``processes``; ``steps``: batches of all students together;
    ``errors``: why students can't be trained, by what they are."""

    students: int
    cohorts: int
    processes: int
    threads: int
    steps: int
    errors: dict[str, str]


@dataclass(frozen=True)
class Swept:
    """The sweep's folder; its table; the row that was chosen, None where no combination has all of its seeds, and for
    a process that joined; the command that trains the chosen one's first student again; seconds of this command.
    ``searched``: with ``auto``, the table of all settings; ``table`` then has the best of them, with students of fresh
    seeds. None where there was no time for these. ``failed``: students of a grid that failed; a search tries settings
    that may fail."""

    folder: Path
    table: Table
    best: Row | None
    command: str | None
    seconds: float
    searched: Table | None = None
    failed: int = 0

    def to_json(self) -> dict[str, Any]:
        """One object for scripts."""
        chosen = None
        if self.best is not None:
            chosen = {**self.best.to_json(), "mean_val": statistics.mean(self.best.vals), "command": self.command}
        return {
            "sweep": str(self.folder),
            "score": self.table.leading,
            "rows": self.table.to_json(),
            **({"searched": self.searched.to_json()} if self.searched is not None else {}),
            "chosen": chosen,
            "seconds": self.seconds,
        }


def sweep(shown: Callable[[Table], None] | None = None, **options: Any) -> Swept:
    """Trains all combinations of options that have several values, each with several seeds, in processes that share the
    machine, and chooses one by held-out rows. The students of the chosen combination alone see the test split.

    ``options``: those of ``SweepConfig`` and of ``TrainConfig``, of which the ones in ``config.sweep.GRID`` may be
    lists; of ``loss`` each entry is a value of its own, or a list of losses that are added. ``shown``: told of the
    table whenever a student has ended.

    Errors: ``UsageError`` for options that can't be, ``SoftcacheError`` where all students fail. One that fails is in
    the table with its reason, and the others go on.
    """
    began = time.monotonic()
    refuse_several("sweep")
    if options.get("join") is not None:
        return _join(options, began)
    settled, every, parts = _planned(options)
    with opened(settled, "sweeps") as many:
        found, searched, best = _trained(many, settled, every, parts, shown, began)
        for run in best.runs if best is not None else ():
            if many.outcome(run.name).result is not None:
                look_at_test(many, run, settled.anew)
        found = table(many, [run for row in found.rows for run in row.runs])
        best = next((row for row in found.rows if best is not None and row.runs == best.runs), None)
        command = train_command(best.runs[0].options, settled.specification.threads) if best is not None else None
        asked = settled.specification.options
        failed = 0 if asked.get("auto") or asked.get("trials") is not None else found.failed
        swept = Swept(many.path, found, best, command, time.monotonic() - began, searched, failed)
        document = {"version": 1, **swept.to_json()}
        replace_file(many.path / TABLE, (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())
    refuse_all_failed(found)
    return swept


def _trained(
    many: ManyFolder,
    settled: Settled,
    every: Sequence[Run],
    parts: Sequence[Sequence[Run]],
    shown: Callable[[Table], None] | None,
    began: float,
) -> tuple[Table, Table | None, Row | None]:
    """All students, trained: their table, with ``--auto`` that of the settings too, and the row that is chosen."""
    asked = settled.specification.options
    if asked.get("auto"):
        clock = Clock(many.path, budget_seconds(asked["budget"]), began)
        with Trainers(many, settled, clock.keeping(shown)) as trainers:
            found = search_within(many, settled, trainers, clock)
        return found.finalists or found.searched, found.searched if found.finalists else None, found.best
    with Trainers(many, settled, shown) as trainers:
        if asked.get("trials") is not None:
            every = search(many, settled, trainers)
        else:
            log.info(f"{counted(len(every), 'student')} in {counted(len(parts), 'cohort')}, results in {many.path}")
            trainers.train(every, parts, last=True)
    grid = table(many, every)
    return grid, None, grid.best()


def _join(options: Mapping[str, Any], began: float) -> Swept:
    """Trains cohorts of a sweep that another process looks after, and leaves when there is none left to take."""
    settled = settle("sweep", SweepConfig, options, DEFAULTS, at="join")
    assert settled.folder is not None
    check_trackers({**settled.specification.options, **settled.anew}.get("log", ()))  # no student fails by them here
    many = ManyFolder(settled.folder)
    with (
        allowing_too(settled.specification.to_allow()),
        crew(many, settled.specification, settled.anew, settled.processes) as processes,
    ):
        for process in processes:
            process.wait()
    asked = settled.specification.options
    if asked.get("auto"):
        every = students_of(many, settled)
    elif asked.get("trials") is not None:
        every = runs(drawn(many, settled), settled.seeds)
    else:
        every = runs(combinations(settled.specification.of_train), settled.seeds)
    return Swept(many.path, table(many, every), None, None, time.monotonic() - began)


def plan_sweep(**options: Any) -> Planned:
    """What ``sweep`` with these options would train; opens all data and students, and writes nothing."""
    for name in ("trials", "auto"):
        if options.get(name):
            raise UsageError(f"--dry-run knows the students of a grid; those of --{name} are chosen as it goes")
    settled, every, parts = _planned(options)
    steps, errors = 0, {}
    for part in parts:
        configs = [TrainConfig.of(**run.options, test=False, out=run.name) for run in part]
        for run, found in zip(part, resolve(configs), strict=True):
            if isinstance(found, SoftcacheError):
                errors[run.name] = str(found)
            else:
                steps += found.steps
    processes = min(settled.processes, len(parts))
    return Planned(len(every), len(parts), processes, settled.specification.threads, steps, errors)


def _planned(options: Mapping[str, Any]) -> tuple[Settled, list[Run], list[list[Run]]]:
    """What is asked for, the runs of it, and these in cohorts.

    Errors: ``UsageError`` for values that can't be, and without held-out rows.
    """
    if options.get("auto"):
        options = {**AUTO, **options}
    settled = settle("sweep", SweepConfig, options, DEFAULTS)
    of_train = settled.specification.of_train
    if not of_train["val_fraction"]:
        raise UsageError("--val-fraction 0 leaves no rows to choose by: a sweep never chooses by the test split")
    if settled.specification.options.get("trials") is not None:
        return (settled if settled.begun else _complete(settled, first_values(of_train), round_size(settled))), [], []
    if settled.specification.options.get("auto"):
        return (settled if settled.begun else _complete(settled, _one_combination(of_train), FIRST)), [], []
    found = combinations(of_train)
    if not settled.begun:
        settled = _complete(settled, found, len(found))
        found = combinations(settled.specification.of_train)
    every = runs(found, settled.seeds)
    return settled, every, cohorts(every, settled.specification.at_once)


def _one_combination(options: Mapping[str, Any]) -> list[Combination]:
    """What ``--auto`` starts from. Errors: ``UsageError`` where several values are given, and for labels alone."""
    for name in GRID:
        if len(options.get(name, ())) > 1:
            option, given = name.replace("_", "-"), ", ".join(map(shown_value, options[name]))
            raise UsageError(f"--{option} {given}: --auto keeps options that are given and takes one value of each")
    found = combinations(options)
    if parse(TrainConfig.of(**found[0].options)).labels_alone:
        raise UsageError("--auto looks for the best way to learn from a teacher: leave out --alpha 0")
    return found


def _complete(settled: Settled, found: Sequence[Combination], together: int) -> Settled:
    """With the cache that is taken where nobody named one, and with cohorts so small that each process has some: what a
    command that goes on elsewhere would find otherwise. ``together``: combinations that are trained at a time."""
    options, at_once = settled.specification.options, settled.specification.at_once
    students = together * len(settled.seeds)
    alone = all(parse(TrainConfig.of(**one.options)).labels_alone for one in found)
    if not (options.get("cache") or options.get("online") or alone):
        options = {**options, "cache": (str(pick_cache(None).resolve()),)}
    each = -(-students // settled.processes)
    return settled.with_specification(options=options, at_once=max(1, min(at_once, each)))
