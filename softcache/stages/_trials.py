"""``softcache sweep --trials``: combinations that Optuna proposes, a round of them at a time.

A round is asked for, trained as cohorts, and told to Optuna, whose storage is a file in the sweep's folder. What a
round is is written down in ``rounds/`` as soon as it was asked for, and each has a sampler of its own seed, so that an
interrupted search goes on to what it would have come to.
"""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softcache import strictjson
from softcache.atomic import replace_file
from softcache.config.folders import make_folder
from softcache.console import counted
from softcache.errors import SoftcacheError, UsageError
from softcache.extras import missing_extra
from softcache.stages._many import Settled, Trainers
from softcache.stages._pruning import bars, scores
from softcache.sweeping.folder import ROUNDS, ManyFolder
from softcache.sweeping.grid import Combination, Run, chosen_combination, cohorts, runs
from softcache.sweeping.space import Range, rounded, space

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)
STORAGE = "optuna.log"
VERSION = 1
MOST_AT_ONCE = 16  # trials that are asked for at once don't know of each other
ROUNDS_AIMED_AT = 8
PRUNED_FROM = 1 / 3  # of the epochs: before that scores say little


def round_size(settled: Settled) -> int:
    """Trials that are asked for at a time."""
    trials = int(settled.specification.options["trials"])
    return max(1, min(MOST_AT_ONCE, max(2, -(-trials // ROUNDS_AIMED_AT)), trials))


def first_values(options: Mapping[str, Any]) -> list[Combination]:
    """The combination of all first values and lower ends: it is trained like any other, and shows whether options can
    be at all.

    Errors: ``UsageError`` where they can't.
    """
    drawn_from = space(options)
    if not drawn_from:
        raise UsageError("--trials draws from options that have several values or a range, such as --lr 0.01..0.5")
    first = {name: _low(one) if isinstance(one, Range) else one[0] for name, one in drawn_from.items()}
    return [chosen_combination(options, first)]


def search(many: ManyFolder, settled: Settled, trainers: Trainers) -> list[Run]:
    """Trains as many trials as were asked for and gives their runs. Trials that mean the same are trained once.

    Errors: ``MissingExtraError`` without Optuna.
    """
    optuna = _optuna()
    options, wanted = settled.specification.of_train, int(settled.specification.options["trials"])
    study, drawn_from = _study(optuna, many.path), space(options)
    every: list[Run] = []
    log.info(f"{counted(wanted, 'trial')}, results in {many.path}")
    number = asked = 0
    while asked < wanted:
        path = many.path / ROUNDS / f"{number:04d}.json"
        if not path.exists():
            size = min(round_size(settled), wanted - asked)
            _ask(optuna, study, drawn_from, path, size, seed=settled.seeds[0] * 1000 + number)
        entries = _read(path)
        own = runs(_distinct([chosen_combination(options, entry["values"]) for entry in entries]), settled.seeds)
        asked += len(entries)
        known = {run.name for run in every}
        new = [run for run in own if run.name not in known]
        pruned = bool(settled.specification.options.get("prune", True)) and "epochs" not in drawn_from
        needed = bars(many, every, PRUNED_FROM) if pruned else {}
        parts = cohorts(new, settled.specification.at_once)
        trainers.train(new, parts, last=asked >= wanted, bars=needed)
        every += new
        for entry in entries:
            _tell(optuna, study, entry, many, settled, options)
        number += 1
    return every


def drawn(many: ManyFolder, settled: Settled) -> list[Combination]:
    """The combinations of the rounds that there are."""
    paths = sorted((many.path / ROUNDS).glob("[0-9]*.json"))
    options = settled.specification.of_train
    return _distinct([chosen_combination(options, entry["values"]) for path in paths for entry in _read(path)])


def _study(optuna: Any, folder: Path) -> optuna.Study:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    make_folder(folder / ROUNDS)
    file = folder / STORAGE
    _mend(file)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(file)))
    return optuna.create_study(storage=storage, study_name="sweep", direction="maximize", load_if_exists=True)


def _mend(file: Path) -> None:
    """Takes away what a killed process left: half a line, and the lock. The sweep's own lock is held, so no other
    process writes there."""
    file.with_name(file.name + ".lock").unlink(missing_ok=True)
    if file.exists():
        content = file.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            replace_file(file, whole)


def _ask(optuna: Any, study: optuna.Study, drawn_from: Mapping[str, Any], path: Path, size: int, *, seed: int) -> None:
    """Writes down a round. Trials of one that was cut off before that are given up."""
    rounds = [entry for other in sorted(path.parent.glob("[0-9]*.json")) for entry in _read(other)]
    known = {entry["trial"] for entry in rounds}
    for trial in study.get_trials(deepcopy=False):
        if trial.number not in known and not trial.state.is_finished():
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    # The draws of a sampler follow from its seed and from what was told before.
    study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    entries = []
    for _ in range(size):
        asked = study.ask()
        values = {name: _drawn(asked, name, one) for name, one in drawn_from.items()}
        entries.append({"trial": asked.number, "values": values})
    document = {"version": VERSION, "trials": entries}
    replace_file(path, (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())


def _drawn(trial: optuna.Trial, name: str, one: Range | tuple[Any, ...]) -> Any:
    if not isinstance(one, Range):
        # Optuna keeps plain values; several losses of one value are none.
        return one[trial.suggest_categorical(name, list(range(len(one))))]
    if one.whole:
        return trial.suggest_int(name, int(one.low), int(one.high))
    return rounded(trial.suggest_float(name, one.low, one.high, log=one.log))


def _tell(
    optuna: Any, study: optuna.Study, entry: Mapping[str, Any], many: ManyFolder, settled: Settled, options: Any
) -> None:
    """Tells what a trial came to: the mean over its seeds on the held-out rows."""
    trial = study.get_trials(deepcopy=False)[entry["trial"]]
    if trial.state.is_finished():
        return
    own = runs([chosen_combination(options, entry["values"])], settled.seeds)
    outcomes = [many.outcome(run.name) for run in own]
    vals = [outcome.val for outcome in outcomes if outcome.val is not None]
    if len(vals) == len(own):
        study.tell(entry["trial"], statistics.mean(vals))
    elif any(outcome.pruned for outcome in outcomes):
        # Optuna learns from the last score of a trial that ended early.
        open_trial = optuna.trial.Trial(study, trial._trial_id)
        lines = [scores(many, run) for run in own]
        for epoch, at_it in enumerate(zip(*lines, strict=False), 1):
            open_trial.report(statistics.mean(at_it), epoch)
        study.tell(entry["trial"], state=optuna.trial.TrialState.PRUNED)
    else:
        study.tell(entry["trial"], state=optuna.trial.TrialState.FAIL)


def _distinct(found: Sequence[Combination]) -> list[Combination]:
    kept = {json.dumps(one.options, sort_keys=True): one for one in reversed(found)}
    return list(reversed(kept.values()))


def _read(path: Path) -> list[dict[str, Any]]:
    """Errors: ``SoftcacheError`` where the file isn't one of a round."""
    try:
        document = strictjson.loads(path.read_bytes())
        if document["version"] != VERSION:
            raise SoftcacheError(f"{path} is not of version {VERSION}, which this softcache knows")
        return [{"trial": int(entry["trial"]), "values": dict(entry["values"])} for entry in document["trials"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SoftcacheError(f"{path} is not a round of a sweep: {error}") from None


def _low(one: Range) -> float | int:
    return int(one.low) if one.whole else one.low


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise missing_extra("--trials needs Optuna", "sweep") from None
    return optuna
