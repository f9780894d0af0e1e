"""The folder that a training writes into: held by one process, cleared of what killed ones left, and never lost to a
disk that fills up."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from softcache.atomic import check_in_place, remove_dead_temporaries, why_full
from softcache.errors import ModelError, SoftcacheError
from softcache.locks import locked
from softcache.models._folder import CONFIG
from softcache.tracking._kept import TRACKING
from softcache.training.checkpoint import CHECKPOINT
from softcache.training.metrics import METRICS, STEPS

log = logging.getLogger(__name__)

LOCK = ".lock"


@contextlib.contextmanager
def training_into(folder: Path, go_on: str) -> Iterator[None]:
    """Holds the folder of a run or of a teacher while it is trained. ``go_on``: the command that resumes it.

    Errors: ``LockedError`` where another process trains into it; ``SoftcacheError`` where a file that is written there
    is a link or no file, and where the disk is full: what the last checkpoint holds stays.
    """
    with locked(folder / LOCK, f"{folder} is being trained"):
        for name in (METRICS, STEPS, CHECKPOINT, TRACKING):
            check_in_place(folder / name)
        for leftover in remove_dead_temporaries(folder, deep=False):
            log.info(f"removed {leftover.name}: its writer is gone")
        try:
            yield
        except (OSError, ModelError) as error:
            why = why_full(error.__cause__ if isinstance(error, ModelError) else error)
            if why is None:
                raise
            kept = (folder / CHECKPOINT).exists()
            cure = f"go on with {go_on}" if (folder / CONFIG).exists() else "run the same command again"
            raise SoftcacheError(
                f"disk full at {folder} ({why}); {'the last checkpoint is whole' if kept else 'no epoch is kept yet'}: "
                f"free space and {cure}"
            ) from error
