"""One writer for each share of a cache. Readers need no lock."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from softcache.errors import LockedError

_LOCK = re.compile(r"\.writing-(\d+)of(\d+)\.lock")


@contextlib.contextmanager
def writing(folder: Path, part: tuple[int, int] = (1, 1)) -> Iterator[None]:
    """Holds the share ``part`` = (k, n) of a cache's folder.

    Errors: ``LockedError`` that says who holds it, or who holds another division of the work (2/4 beside 1/1).
    Where the file system has no locks, shards still come whole: each writer has temporary names of its own.
    """
    lock = FileLock(folder / f".writing-{part[0]}of{part[1]}.lock")
    held_by = folder / f".writing-{part[0]}of{part[1]}.holder"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise LockedError(f"{folder} is being written by {_holder(held_by)}") from None
    try:
        for other in folder.glob(".writing-*.lock"):
            match = _LOCK.fullmatch(other.name)
            if match and int(match[2]) != part[1] and _is_held(other):
                raise LockedError(f"{folder} is being written by {_holder(other.with_suffix('.holder'))}")
        who = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        held_by.write_text(json.dumps({**who, "part": f"{part[0]}/{part[1]}"}))
        yield
    finally:
        held_by.unlink(missing_ok=True)
        lock.release()


def _is_held(path: Path) -> bool:
    probe = FileLock(path)
    try:
        probe.acquire(timeout=0)
    except Timeout:
        return True
    probe.release()
    return False


def _holder(path: Path) -> str:
    try:
        who = json.loads(path.read_text())
        return f"process {who['pid']} on {who['host']} (part {who['part']}, since {who['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
