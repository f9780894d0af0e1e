"""Who writes: one process for each share of a cache, and one at a time for its manifest. Readers need no lock.

A share is held with ``flock``. Where a file system grants that to everybody, a share may be computed twice, and
nothing worse: every writer has temporary names of its own, and what two of them commit under one name are the same
bytes. The manifest is read, changed and written, and codecs are fitted once, so those locks are files that only one
process can create, which is exclusive on those file systems too.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

from softcache.errors import LockedError, SoftcacheError
from softcache.locks import SOFT, holder, is_held, locked, remove_of, signature

log = logging.getLogger(__name__)

MANIFEST_LOCK, FITTING_LOCK = ".cache.json.lock", ".fitting.lock"
# One small file is read and written, and small ones are renamed, while the manifest is locked: milliseconds, or seconds
# on a disk that has much else to do. Who waits longer than this waits for a process that is stopped or lost.
PATIENCE_S = 60.0
FITTING_S = 86400.0
_LOCK = re.compile(r"\.writing-(\d+)of(\d+)\.lock(\.soft)?")


@contextlib.contextmanager
def writing(folder: Path, part: tuple[int, int] = (1, 1)) -> Iterator[None]:
    """Holds the share ``part`` = (k, n) of a cache's folder.

    Errors: ``LockedError`` that says who holds it, or who holds another division of the work (2/4 beside 1/1).
    """
    k, n = part
    what = f"{folder} is being written"
    with locked(folder / f".writing-{k}of{n}.lock", what, part=f"{k}/{n}"):
        for other in sorted(folder.glob(".writing-*.lock*")):
            match = _LOCK.fullmatch(other.name)
            if match and int(match[2]) != n and is_held(other, soft=other.name.endswith(SOFT)):
                raise LockedError(
                    f"{what} by {holder(other)}: wait for it, or share the work as it does (--part K/{match[2]})"
                )
        yield


@contextlib.contextmanager
def fitting(folder: Path) -> Iterator[None]:
    """Held while codecs are fitted, for which the teacher runs on a few thousand keys; waits as long as that takes, and
    says for whom after ``PATIENCE_S`` seconds.

    Errors: ``LockedError`` after a day.
    """
    path, what = folder / FITTING_LOCK, f"codecs of {folder} are being fitted"
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(path, what, wait=PATIENCE_S, soft=True))
        except LockedError as error:
            log.info(f"waiting: {error}")
            stack.enter_context(locked(path, what, wait=FITTING_S, soft=True))
        yield


@contextlib.contextmanager
def changing(folder: Path) -> Iterator[None]:
    """Held while the manifest is read, changed and written; waits for its turn.

    Errors: ``LockedError`` that says who holds it, after ``PATIENCE_S`` seconds.
    """
    path = folder / MANIFEST_LOCK
    with locked(path, f"the manifest of {folder} is being changed", wait=PATIENCE_S, soft=True):
        yield


def who_writes(folder: Path) -> str:
    """What the lock of a cache's only share says of who holds it, the same text wherever that folder is seen; nothing
    where nobody does."""
    lock = folder / ".writing-1of1.lock"
    return signature(lock) or signature(lock.with_name(lock.name + SOFT))


def remove_locks_of(folder: Path, pid: int, host: str) -> None:
    """Removes the manifest's locks that a process of some host has left, by whoever knows that it is gone."""
    for name in (MANIFEST_LOCK, FITTING_LOCK):
        if remove_of(folder / name, pid, host):
            log.info(f"removed {name} of process {pid} on {host}, which is gone")


def remove_locks(folder: Path) -> None:
    """Removes the manifest's locks, by whoever knows that no process is at work in this folder. One that was killed
    before it had signed such a lock would be waited for."""
    for name in (MANIFEST_LOCK, FITTING_LOCK):
        (folder / name).unlink(missing_ok=True)


def is_lock(name: str) -> bool:
    """Whether a file in a cache's folder belongs to one of these locks."""
    return name.startswith((MANIFEST_LOCK, FITTING_LOCK)) or _LOCK.match(name) is not None


def remove_stale_locks(folder: Path) -> None:
    """Removes the locks of processes that were killed while they held them."""
    shares = [path for path in folder.glob(".writing-*.lock*") if _LOCK.fullmatch(path.name)]
    for path in (*shares, folder / MANIFEST_LOCK, folder / FITTING_LOCK):
        if os.path.lexists(path):
            with contextlib.suppress(SoftcacheError):  # no lock, or not ours: whoever needs that name is told
                is_held(path, soft=path.name in (MANIFEST_LOCK, FITTING_LOCK) or path.name.endswith(SOFT))
