"""``train --resume``: the options of a run that was interrupted, and whether all that it began with is still there."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from softcache.config.data import TrainingData
from softcache.config.given import followed_options
from softcache.config.record import Record, read_record
from softcache.config.teachers import refuse_other_teacher
from softcache.config.train import TrainConfig
from softcache.errors import CacheError, SoftcacheError, UsageError
from softcache.localfiles import local_path

# What a resumed run may be told anew, because it may go on elsewhere and none of it changes what is trained.
MOVABLE = ("cuda_graphs", "data_dir", "device", "download", "log", "profile", "resident", "start_method", "workers")


def resumed(options: TrainConfig) -> tuple[TrainConfig, Record[TrainConfig]]:
    """The options of the run in ``options.resume``, with those that may be given anew, and its record.

    Errors: ``UsageError`` that names others that were given, ``SoftcacheError`` where the folder is no run,
    ``NotNamedError`` where its options name paths or code that the user never gave for it.
    """
    assert options.resume is not None
    others = [f"--{name.replace('_', '-')}" for name in sorted(options.given - {"resume"}) if name not in MOVABLE]
    if others:
        raise UsageError(
            f"--resume {options.resume} goes on with that run's own options: leave out {', '.join(others)}"
        )
    folder = local_path(options.resume, "--resume")
    record = read_record(folder)
    if not isinstance(record.options, TrainConfig):
        raise SoftcacheError(f"{options.resume} is not a run of softcache train")
    anew = {name: getattr(options, name) for name in options.given if name in MOVABLE}
    return dataclasses.replace(followed_options(folder, record.options, anew), **anew), record


def refuse_other_targets(folder: Path, record: Record[TrainConfig], data: TrainingData) -> None:
    """Errors: ``CacheError`` where the caches are not those that the run in ``folder`` began with, ``ModelError`` where
    its live teacher has other parameters by now."""
    if data.live is not None:
        cure = "the run can go on with these alone"
        refuse_other_teacher(folder, record, f"{data.live.spec} has by now", data.live_weights, cure)
    began = {str(entry["path"]): entry["cache_id"] for entry in record.caches}
    for cache in data.every_cache:
        if cache.manifest.cache_id not in began.values():
            raise CacheError(f"{cache.where} is not the cache that {folder} began with: they are {', '.join(began)}")
