"""A process of a sweep: it takes cohorts from a folder until none is left that nobody holds.

``python -m softcache.stages._worker`` reads one line of JSON from its standard input, and ends when that is closed, so
that it doesn't outlive whoever started it, however that ended.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from softcache.config.given import FOLLOWED
from softcache.config.sweep import Specification, read_specification
from softcache.config.train import TrainConfig
from softcache.console import show_messages
from softcache.errors import LockedError, NotNamedError, SoftcacheError
from softcache.remembered import is_plain, set_process
from softcache.stages._cohort import train_cohort
from softcache.sweeping.folder import CACHES, ManyFolder, held_out, read_bars, read_cohort

POLL_S = 0.2


@dataclasses.dataclass(frozen=True)
class Job:
    """``folder``: of the sweep; ``command``: whose it is; ``anew``: options that say where it is run; ``writes``,
    ``allowed``: as ``remembered.set_process`` takes them; ``max_image_pixels``: Pillow's limit."""

    folder: str
    command: str
    anew: dict[str, Any]
    writes: bool
    allowed: list[str]
    max_image_pixels: int | None


def main() -> None:
    """The process's main function."""
    job = Job(**json.loads(sys.stdin.readline()))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGTERM, _leave)
    show_messages()
    set_process(writes=job.writes, allowed=job.allowed)
    Image.MAX_IMAGE_PIXELS = job.max_image_pixels
    folder = Path(job.folder)
    work(folder, read_specification(folder, job.command), job.anew)


def work(folder: Path, specification: Specification, anew: Mapping[str, Any]) -> None:
    """Trains cohorts that nobody holds, until no more will come and none is left to take."""
    many = ManyFolder(folder)
    while True:
        # Asked first: what is there then is all. Without anybody at work on the folder no more will come either.
        closed = many.closed or not many.is_tended
        progress = False
        for cohort in many.cohorts():
            runs = read_cohort(cohort)
            if not all(many.outcome(name).ended for name, _ in runs):
                progress = _train(many, cohort, specification, anew) or progress
        if not progress:
            if closed:
                return
            time.sleep(POLL_S)


def _train(many: ManyFolder, cohort: Path, specification: Specification, anew: Mapping[str, Any]) -> bool:
    """Whether any of its runs has ended by it."""
    with many.taken(cohort) as taken:
        if not taken:
            return False
        configs, names = [], []
        for name, options in read_cohort(cohort):
            if many.outcome(name).ended:
                continue
            try:
                _refuse_unnamed(many.path, options, specification)
                whole = {**options, **anew, "test": specification.tests, "out": str(many.run_folder(name))}
                configs.append(TrainConfig.of(**whole))
                names.append(name)
            except SoftcacheError as error:
                many.fail(name, error)
        bars = read_bars(cohort)
        found = train_cohort(configs, functools.partial(_below, bars) if bars else None, many.path.name)
        for name, outcome in zip(names, found, strict=True):
            if isinstance(outcome, SoftcacheError) and not isinstance(outcome, LockedError):
                many.fail(name, outcome)
        return any(not isinstance(outcome, LockedError) for outcome in found) or not names


def _below(bars: Mapping[int, float], lines: Sequence[dict[str, Any]]) -> str | None:
    """Why a student ends early that is below the bar after its last epoch; None where it isn't."""
    bar, scores = bars.get(len(lines)), held_out(lines)
    if bar is None or not scores or max(scores) >= bar:
        return None
    return f"{max(scores):.4g} on the held-out rows, where it takes {bar:.4g} to go on"


def _refuse_unnamed(folder: Path, options: Mapping[str, Any], specification: Specification) -> None:
    """Errors: ``NotNamedError`` where a cohort's file names a path or code that the specification, which was looked
    at, doesn't."""
    known = specification.to_allow()
    for name in FOLLOWED:
        value = options.get(name)
        for one in [value] if isinstance(value, str) else value or ():
            own = name == "cache" and Path(one).is_relative_to(folder.resolve() / CACHES)
            if not is_plain(name, one) and one not in known and not own:
                raise NotNamedError(f"a cohort of {folder} names {one}, which its specification doesn't")


def _leave(number: int, frame: Any) -> None:
    """SIGTERM as an exception, so that trackers are told that the students were stopped. A second one is none."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + number)


def _end_with_parent() -> None:
    # Not sys.stdin.readline(): while it waits, it holds the lock of sys.stdin, and a process of --workers that is
    # forked meanwhile closes its copy of sys.stdin, for which it would wait for ever.
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
