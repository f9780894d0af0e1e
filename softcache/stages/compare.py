"""A student alone and distilled, and its teacher, over several seeds: ``softcache compare``."""

from __future__ import annotations

import json
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softcache.atomic import replace_file
from softcache.cache.reader import Cache
from softcache.config.folders import pick_cache, teacher_folder
from softcache.config.given import recorded_dataset, recorded_recipe, recorded_teacher
from softcache.config.opening import Opening
from softcache.config.parsed import parse
from softcache.config.record import CONFIG, read_record
from softcache.config.sweep import CompareConfig, divided
from softcache.config.teachers import known_folder
from softcache.config.train import TrainConfig
from softcache.console import counted
from softcache.distributed import refuse_several
from softcache.errors import SoftcacheError, UsageError
from softcache.models._weights import fingerprint_file_cached
from softcache.stages._many import Settled, Trainers, opened, refuse_all_failed, settle, table
from softcache.stages.dump import dump
from softcache.sweeping.comparison import Comparison, compared
from softcache.sweeping.folder import CACHES, ManyFolder
from softcache.sweeping.grid import Combination, cohorts, runs
from softcache.sweeping.table import Row, Table

log = logging.getLogger(__name__)
TABLE = "table.json"
# Students of several seeds share a stream.
DEFAULTS = {"order_seed": 0}
# What only a student with a teacher has.
_OF_A_TEACHER = (
    "loss", "T", "beta", "targets", "fresh_share", "views", "views_per_image", "teacher_weight", "combine", "hint",
    "hint_cache", "hint_epochs", "init", "init_map", "online", "teacher", "teacher_weights", "teacher_size", "dtype",
)  # fmt: skip


@dataclass(frozen=True)
class Compared:
    """The comparison's folder, what came out, and seconds of this command."""

    folder: Path
    comparison: Comparison
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """One object for scripts."""
        return {"comparison": str(self.folder), **self.comparison.to_json(), "seconds": self.seconds}


def compare(shown: Callable[[Table], None] | None = None, **options: Any) -> Compared:
    """Trains a student on labels alone and from the teacher, with the same options and seeds, and compares them seed by
    seed. What isn't given is each one's own: their presets' learning rates differ.

    ``options``: those of ``CompareConfig`` and of ``TrainConfig``. With ``generations`` the student of the highest
    score on held-out rows teaches the next, until their mean there rises no more. ``shown``: told of the table
    whenever a student has ended.

    Errors: ``UsageError`` for options that can't be, ``SoftcacheError`` where all students fail.
    """
    began = time.monotonic()
    refuse_several("compare")
    settled = _settled(options)
    alone, distilled = _rows(settled.specification.of_train)
    every = runs([alone, distilled], settled.seeds)
    generations, at_once = int(settled.specification.options["generations"]), settled.specification.at_once
    with opened(settled, "comparisons") as many, Trainers(many, settled, shown) as trainers:
        log.info(f"{counted(len(every), 'student')}, results in {many.path}")
        teachers = _teachers(settled.specification.of_train)
        found = trainers.train(every, cohorts(every, at_once), last=generations == 1)
        refuse_all_failed(found)
        for generation in range(2, generations + 1):
            if not _rises(found):
                break
            cache = _taught(many, settled, found.rows[-1], generation)
            own = runs([_generation(distilled, cache, generation)], settled.seeds)
            trainers.train(own, cohorts(own, at_once), last=generation == generations)
            every = [*every, *own]
            found = table(many, every)
        done = Compared(many.path, compared(found, teachers), time.monotonic() - began)
        document = {"version": 1, **done.to_json()}
        replace_file(many.path / TABLE, (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())
    return done


def _settled(options: Mapping[str, Any]) -> Settled:
    several = divided(CompareConfig, options)[0].generations > 1
    settled = settle("compare", CompareConfig, options, {**DEFAULTS, **({"val_fraction": 0.1} if several else {})})
    if settled.begun:
        return settled
    chosen = settled.specification.options
    if several and not chosen["val_fraction"]:
        raise UsageError("--generations ends where held-out rows say so: --val-fraction must be above 0")
    if several and (chosen.get("hint") or chosen.get("online") or len(chosen.get("cache", ())) > 1):
        raise UsageError("--generations needs one cache and no hints: the next student learns from the one before")
    parsed = parse(TrainConfig.of(**settled.specification.of_train))
    if parsed.labels_alone:
        raise UsageError("--alpha 0 trains on labels alone, which is one of the two that are compared: leave it out")
    if not (chosen.get("cache") or chosen.get("online")):
        chosen = {**chosen, "cache": (str(pick_cache(None).resolve()),)}
    each = -(-2 * len(settled.seeds) // settled.processes)
    return settled.with_specification(options=chosen, at_once=max(1, min(settled.specification.at_once, each)))


def _rows(options: Mapping[str, Any]) -> tuple[Combination, Combination]:
    """The student alone, and distilled."""
    kept = {name: value for name, value in options.items() if name not in _OF_A_TEACHER}
    return Combination({"row": "alone"}, {**kept, "alpha": 0}), Combination({"row": "distilled"}, dict(options))


def _generation(distilled: Combination, cache: Path, number: int) -> Combination:
    options = {**distilled.options, "cache": (str(cache),)}
    return Combination({"row": f"generation {number}"}, options)


def _rises(table: Table) -> bool:
    """Whether the last row's mean on the held-out rows is above that of the one before, or it is the first that is
    distilled; never where one of its students failed."""
    last, before = table.rows[-1], table.rows[-2]
    if not last.complete:
        return False
    return len(table.rows) == 2 or statistics.mean(last.vals) > statistics.mean(before.vals)


def _taught(many: ManyFolder, settled: Settled, row: Row, generation: int) -> Path:
    """The cache of what the best student of a row, by held-out rows, says of the same views."""
    options = settled.specification.of_train
    best = max(zip(row.runs, row.outcomes, strict=True), key=lambda pair: pair[1].val or 0.0)[0]
    folder = (many.path / CACHES / f"generation-{generation}").resolve()
    first = _opened(options["cache"][0], options)
    identity = first.manifest.identity
    log.info(f"generation {generation} is taught by {best.name}")
    here = {**options, **settled.anew}
    where = {name: here[name] for name in ("data_dir", "download", "device", "workers") if name in here}
    dump(
        str(many.run_folder(best.name)),
        out=str(folder),
        dataset=recorded_dataset(first, options.get("dataset")),
        split=identity.dataset.split,
        augment=recorded_recipe(first, options.get("augment")),
        view_seed=identity.recipe["seed"],
        size=identity.recipe.get("size"),
        views=first.views,
        **where,
    )
    return folder


def _opened(name: str, options: Mapping[str, Any]) -> Cache:
    defaults = TrainConfig()
    chosen = (options.get(key, getattr(defaults, key)) for key in ("expect", "local_cache", "local_size"))
    return Opening(*chosen).open(name, codec=options.get("codec"))


def _teachers(options: Mapping[str, Any]) -> dict[str, float]:
    """The teachers' scores on the test split, where their folders say them; says so where they don't."""
    found = {}
    for name in options.get("cache", ()):
        cache = _opened(name, options)
        try:
            spec, reached = teacher_test(cache)
        except SoftcacheError as error:
            log.info(f"the teacher's score on the test split isn't known: {error}")
            continue
        found[spec] = reached
    if options.get("online"):
        log.info("the teacher's score on the test split isn't known: it runs live")
    return found


def teacher_test(cache: Cache) -> tuple[str, float]:
    """Errors: ``SoftcacheError`` where no folder of the teacher is known, or it is another one by now."""
    spec, identity = recorded_teacher(cache), cache.manifest.identity
    for folder in _folders(spec, identity.dataset.spec):
        record = read_record(folder)
        weights = fingerprint_file_cached(folder / record.model["weights"])
        if weights != identity.teacher.weights:
            continue
        for leading in ("top1", "map", "r2"):
            tested = (record.result or {}).get("test") or {}
            reached = (record.result or {}).get(f"test_{leading}", tested.get(leading))
            if reached is not None:
                return identity.teacher.spec, float(reached)
    raise SoftcacheError(f"no folder of {spec} has one (softcache eval {spec} measures it)")


def _folders(spec: str, dataset: str) -> Iterator[Path]:
    for folder in (known_folder(spec), teacher_folder(spec, dataset)):
        if folder is not None and (folder / CONFIG).exists():
            yield folder
