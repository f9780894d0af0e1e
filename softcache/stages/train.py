"""Train a student from caches, from a live teacher, or on labels alone: ``softcache train``."""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path

from softcache.config.folders import make_folder, new_folder
from softcache.config.options import command
from softcache.config.parsed import parse
from softcache.config.record import CONFIG, Record
from softcache.config.resume import refuse_other_targets, resumed
from softcache.config.train import TrainConfig
from softcache.console import silent
from softcache.device import reproducible
from softcache.errors import SoftcacheError
from softcache.localfiles import local_path
from softcache.stages._running import Trained, finish, order_of, run_all
from softcache.stages._together import Begun, agreed, begun_before, refuse_ranks
from softcache.stages._tracked import tracked
from softcache.stages._training import Prepared, prepare
from softcache.training.checkpoint import CHECKPOINT
from softcache.training.folder import training_into
from softcache.training.ranks import Ranks, joined


@command(TrainConfig)
def train(options: TrainConfig) -> Trained:
    """Trains a student and writes ``config.json``, ``metrics.jsonl`` and ``student.safetensors`` into a run's folder.

    With ``resume`` an interrupted run goes on, with its own options: only those that don't change what is trained may
    be given beside it.

    Errors: ``UsageError`` for options that can't be, ``CacheError`` where the cache doesn't fit the data,
    ``PixelsError`` where pixels are not those that the teacher saw, ``LockedError`` where another process trains into
    the folder.
    """
    with joined() as ranks, silent(not ranks.first):
        return _train(options, ranks)


def _train(options: TrainConfig, ranks: Ranks) -> Trained:
    with ranks.agreeing():
        begun = begun_before(options, ranks) if ranks.first else None
    begun = Begun.told(ranks.of_first(str(begun) if begun is not None else ""))
    with contextlib.ExitStack() as held:
        with ranks.agreeing():
            own, record = _options(options, begun)
            held.enter_context(reproducible(tf32=own.tf32))
            prepared = _prepared(own, record, begun, ranks)
        prepared = agreed(prepared, ranks)
        with ranks.agreeing():
            folder = begun.folder if begun is not None else None
            if ranks.first:
                folder = folder or _new_folder(options)
                held.enter_context(training_into(folder, f"softcache train --resume {shlex.quote(str(folder))}"))
        folder = Path(ranks.of_first(str(folder)))
        order = order_of(prepared)
        with tracked([prepared], [folder]) as logs:
            (fitted,) = run_all([prepared], [folder], order, resume=begun is not None, logs=logs)
            trained = finish(prepared, folder, fitted)
            logs[0].end("finished", trained.numbers())
        return trained


def _options(options: TrainConfig, begun: Begun | None) -> tuple[TrainConfig, Record[TrainConfig] | None]:
    """Those that are trained with, and the record of a run that goes on."""
    if begun is None:
        return options, None
    return resumed(options) if options.resume is not None else (options, begun.record())


def _prepared(options: TrainConfig, record: Record[TrainConfig] | None, begun: Begun | None, ranks: Ranks) -> Prepared:
    if begun is None or record is None:
        return refuse_ranks(prepare(parse(options), ranks=ranks))
    start = record.start if (begun.folder / CHECKPOINT).exists() else None
    prepared = prepare(parse(options), start, record, ranks=ranks)
    begun.refuse_other(prepared, record)
    refuse_other_targets(begun.folder, record, prepared.data)
    return refuse_ranks(prepared)


def _new_folder(options: TrainConfig) -> Path:
    """That of a new run."""
    if options.out is None:
        return new_folder("runs", options.student)
    folder = local_path(options.out, "--out")
    if (folder / CONFIG).exists():
        raise SoftcacheError(f"{folder} holds a run already: use another --out, or --resume {folder}")
    make_folder(folder)
    return folder
