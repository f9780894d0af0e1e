"""Train a student from caches, from a live teacher, or on labels alone: ``softcache train``."""

from __future__ import annotations

import shlex
from contextlib import AbstractContextManager
from pathlib import Path

from softcache.config.folders import make_folder, new_folder
from softcache.config.options import command
from softcache.config.parsed import parse
from softcache.config.record import CONFIG, Record
from softcache.config.resume import refuse_other_caches, resumed
from softcache.config.train import TrainConfig
from softcache.device import reproducible
from softcache.distributed import refuse_several
from softcache.errors import SoftcacheError
from softcache.localfiles import local_path
from softcache.stages._running import Trained, finish, order_of, run_all
from softcache.stages._training import Prepared, prepare
from softcache.training.checkpoint import CHECKPOINT
from softcache.training.folder import training_into


@command(TrainConfig)
def train(options: TrainConfig) -> Trained:
    """Trains a student and writes ``config.json``, ``metrics.jsonl`` and ``student.safetensors`` into a run's folder.

    With ``resume`` an interrupted run goes on, with its own options: only those that don't change what is trained may
    be given beside it.

    Errors: ``UsageError`` for options that can't be, ``CacheError`` where the cache doesn't fit the data,
    ``PixelsError`` where pixels are not those that the teacher saw, ``LockedError`` where another process trains into
    the folder.
    """
    refuse_several("train")
    if options.resume is not None:
        own, record = resumed(options)
        with reproducible(tf32=own.tf32):
            return _go_on(Path(options.resume), own, record)
    out = local_path(options.out, "--out") if options.out is not None else None
    with reproducible(tf32=options.tf32):
        prepared = prepare(parse(options))
        folder = out or new_folder("runs", options.student)
        if (folder / CONFIG).exists():
            raise SoftcacheError(f"{folder} holds a run already: use another --out, or --resume {folder}")
        make_folder(folder)
        with _into(folder):
            return _train(prepared, folder, resume=False)


def _go_on(folder: Path, options: TrainConfig, record: Record[TrainConfig]) -> Trained:
    begun = record.start if (folder / CHECKPOINT).exists() else None
    prepared = prepare(parse(options), begun, record)
    refuse_other_caches(folder, record, prepared.data.every_cache)
    with _into(folder):
        return _train(prepared, folder, resume=True)


def _into(folder: Path) -> AbstractContextManager[None]:
    return training_into(folder, f"softcache train --resume {shlex.quote(str(folder))}")


def _train(prepared: Prepared, folder: Path, *, resume: bool) -> Trained:
    (fitted,) = run_all([prepared], [folder], order_of(prepared), resume=resume)
    return finish(prepared, folder, fitted)
