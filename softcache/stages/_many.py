"""What commands of many students have in common: their folder, its cohorts, and what comes out."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import shlex
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from softcache.config.folders import make_folder, new_folder
from softcache.config.record import read_record
from softcache.config.resume import MOVABLE
from softcache.config.sweep import (
    ManyConfig,
    Specification,
    absolute_options,
    divided,
    followed,
    read_specification,
    recorded,
    refuse_other_options,
    remember_specification,
    specification_file,
)
from softcache.config.train import TrainConfig
from softcache.console import advising, bar, counted
from softcache.errors import PrunedError, SoftcacheError, UsageError
from softcache.localfiles import local_path
from softcache.locks import locked
from softcache.remembered import allowing_too
from softcache.stages._crew import crew, default_processes, watch
from softcache.stages._tracked import tell_of_test
from softcache.stages.eval import evaluate
from softcache.sweeping.folder import CACHES, LOCK, ManyFolder
from softcache.sweeping.grid import Run
from softcache.sweeping.table import Table, tabled
from softcache.tracking._specs import check_trackers
from softcache.training.scores import Scores, told

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settled:
    """What a command is to do. ``folder``: None for a new one; ``anew``: options that say where it is run this time;
    ``begun``: whether the folder has been begun before."""

    config: ManyConfig
    specification: Specification
    folder: Path | None
    anew: dict[str, Any]
    begun: bool

    @property
    def seeds(self) -> list[int]:
        """Those of the students of each combination; with ``--auto`` the first is that of the search."""
        asked = self.specification.options
        first, count = int(asked.get("seed", 0)), int(asked.get("seeds", 1)) + bool(asked.get("auto"))
        return list(range(first, first + count))

    @property
    def processes(self) -> int:
        """How many train beside each other here."""
        device = {**self.specification.options, **self.anew}.get("device", "auto")
        return self.config.processes or default_processes(str(device))

    def with_specification(self, **changes: Any) -> Settled:
        """With another specification, for a folder that isn't begun."""
        return dataclasses.replace(self, specification=dataclasses.replace(self.specification, **changes))


def settle(
    command: str, cls: type[ManyConfig], options: Mapping[str, Any], defaults: Mapping[str, Any], at: str = "resume"
) -> Settled:
    """Settles what ``softcache command`` was asked for, with ``defaults`` for options of ``train``. ``at``: the option
    that names a folder which exists.

    Errors: ``UsageError`` for options that can't be, and for another specification than that of the folder.
    """
    config, train = divided(cls, options)
    named = getattr(config, at)
    if named is not None:
        refuse_other_options(options, f"--{at} {named}")
        folder = local_path(named, f"--{at}")
        specification = read_specification(folder, command)
        followed(folder, specification)
        return Settled(config, specification, folder, train, True)
    whole = absolute_options({**defaults, **train, **recorded(config)})
    processes = config.processes or default_processes(str(train.get("device", "auto")))
    specification = Specification(command, whole, max(1, torch.get_num_threads() // processes), config.at_once)
    out = local_path(config.out, "--out") if config.out is not None else None
    if out is None or not specification_file(out, command).exists():
        return Settled(config, specification, out, {}, False)
    begun = read_specification(out, command)
    _refuse_other(out, specification, begun)
    remember_specification(out, begun)  # the user has given all of it again
    return Settled(config, begun, out, {name: train[name] for name in train if name in MOVABLE}, True)


def _refuse_other(folder: Path, asked: Specification, begun: Specification) -> None:
    for name in sorted(asked.options.keys() | begun.options.keys()):
        ours, theirs = asked.options.get(name), begun.options.get(name)
        found_itself = name == "cache" and ours is None
        if ours != theirs and name not in MOVABLE and not found_itself:
            raise UsageError(
                f"{folder} was begun with --{name.replace('_', '-')} {theirs}, not {ours}: use another --out"
            )


@contextlib.contextmanager
def opened(settled: Settled, root: str) -> Iterator[ManyFolder]:
    """The folder, held by this process; a new one in ``root`` where none was named.

    Errors: ``LockedError`` where another process holds it.
    """
    specification = settled.specification
    check_trackers({**specification.options, **settled.anew}.get("log", ()))
    student = specification.options.get("student", TrainConfig.student)
    folder = settled.folder or new_folder(root, student if isinstance(student, str) else str(student[0]))
    make_folder(folder)
    with contextlib.ExitStack() as held:
        own = [str(path) for path in (folder / CACHES).resolve().glob("*")]
        held.enter_context(allowing_too([*specification.to_allow(), *own]))
        held.enter_context(locked(folder / LOCK, f"{folder} is being worked on"))
        if not settled.begun:
            specification.save(folder)
            remember_specification(folder, specification)
        many = ManyFolder(folder)
        many.prepare()
        many.reopen()
        go_on = f"softcache {specification.command} --resume {shlex.quote(str(folder))}"
        held.enter_context(advising(lambda: f"go on with `{go_on}`"))
        yield many


class Trainers:
    """Has runs trained by processes, which are started when there is something to train, and end with it. ``shown``:
    told of the table of the runs of a call whenever one of them has ended."""

    def __init__(self, many: ManyFolder, settled: Settled, shown: Callable[[Table], None] | None):
        self._many, self._settled, self._shown = many, settled, shown
        self._files = contextlib.ExitStack()
        self._processes: list[subprocess.Popen[str]] = []
        self._cohorts = 0

    def __enter__(self) -> Trainers:
        return self

    def __exit__(self, *exception: object) -> None:
        self._files.close()

    def train(
        self,
        runs: Sequence[Run],
        cohorts: Sequence[Sequence[Run]],
        *,
        last: bool,
        bars: Mapping[int, float] | None = None,
        until: float = math.inf,
    ) -> Table:
        """Trains all ``runs``, in these ``cohorts``, and gives what they came to. ``last``: whether no others will
        come; ``bars``: see ``ManyFolder.add_cohort``; ``until``: on the monotonic clock, when those that are trained
        then end early."""
        many = self._many
        for cohort in cohorts:
            many.add_cohort(self._cohorts, cohort, bars)
            self._cohorts += 1
        if last:
            many.close()
        by_name = {run.name: run for run in runs}
        left = [name for name in by_name if not many.outcome(name).ended]
        if len(left) < len(by_name):
            log.info(f"{len(by_name) - len(left)} of {counted(len(by_name), 'student')} are there already")
        if left:
            self._start(len(cohorts) if last else self._settled.processes)
            with bar(self._settled.specification.command, len(by_name), "students") as progress:
                progress.advance(len(by_name) - len(left))

                def ended(name: str) -> None:
                    progress.advance(1)
                    log.info(_told(many, by_name[name]))
                    if self._shown is not None:
                        self._shown(table(many, runs))

                late = watch(many, self._processes, left, ended, until)
            if late:
                self._end(late)
        return table(many, runs)

    def _end(self, names: Sequence[str]) -> None:
        """Ends the processes, and keeps of these runs that they were cut off."""
        self._files.close()
        self._processes = []
        for name in names:
            if not self._many.outcome(name).ended:
                self._many.fail(name, PrunedError("its time was up"))

    def _start(self, most: int) -> None:
        if not self._processes:
            count = min(self._settled.processes, most)
            made = crew(self._many, self._settled.specification, self._settled.anew, count)
            self._processes = self._files.enter_context(made)


def table(many: ManyFolder, runs: Sequence[Run]) -> Table:
    return tabled(runs, [many.outcome(run.name) for run in runs])


def look_at_test(many: ManyFolder, run: Run, anew: Mapping[str, Any]) -> None:
    """Looks at the test split with a run's student, once: its record then has the scores. Students that learn no
    logits have none."""
    folder = many.run_folder(run.name)
    record = read_record(folder)
    assert record.result is not None
    if many.outcome(run.name).test is not None:
        return
    where: dict[str, Any] = {
        name: value for name, value in {**run.options, **anew}.items() if name in ("data_dir", "download")
    }
    where |= {name: value for name, value in {**run.options, **anew}.items() if name in ("device", "workers")}
    try:
        found = evaluate(str(folder), compare=False, **where)
    except UsageError as error:
        log.warning(f"the chosen student isn't tested: {error}")
        return
    kind = next(kind for kind in get_args(Scores) if kind.recorded[0] in found)
    numbers = {f"test_{name}": found[name] for name in kind.recorded}
    dataclasses.replace(record, result={**record.result, **numbers}).save(folder)
    tell_of_test(folder, {**run.options, **anew}.get("log", ()), record, many.path.name, numbers)


def refuse_all_failed(table: Table) -> None:
    """Errors: ``SoftcacheError`` with the first reason where all runs failed."""
    outcomes = [outcome for row in table.rows for outcome in row.outcomes]
    errors = [outcome.error for outcome in outcomes if outcome.error is not None and not outcome.pruned]
    if errors and len(errors) == table.size:
        raise SoftcacheError(f"all {table.size} students failed, the first of them because {errors[0]}")


def _told(many: ManyFolder, run: Run) -> str:
    outcome = many.outcome(run.name)
    what = f"{run.combination.text()}, seed {run.seed}"
    if outcome.error is not None:
        return f"{what} {'ended early' if outcome.pruned else 'failed'}: {outcome.error}"
    if outcome.test is not None:
        return f"{what}: {told(outcome.leading, outcome.test)} of the test split"
    return f"{what}: {told(outcome.leading, outcome.val)} of the held-out rows"
