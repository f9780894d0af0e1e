"""Who writes: one process for each share of a cache, and one at a time for its manifest. Readers need no lock.

Shares are held with ``flock``, which a process can't leave behind. Some cluster file systems don't have it, or grant
it to everybody; then a share may be computed twice, and nothing worse: every writer has temporary names of its own,
and what two of them commit under one name are the same bytes. The manifest is the one file that is read, changed and
written, so its lock is also a link that only one process can create, which works on those file systems too.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from softcache.atomic import is_dead, writer_name
from softcache.errors import LockedError

log = logging.getLogger(__name__)

MANIFEST_LOCK = ".cache.json.lock"
# One small file is read and written, and small ones are renamed, while the manifest is locked: milliseconds, or seconds
# on a disk that has much else to do. A lock that is older was left by a host that is gone.
PATIENCE_S = 60.0
_LOCK = re.compile(r"\.writing-(\d+)of(\d+)\.lock")
_HELD = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES}


@contextlib.contextmanager
def writing(folder: Path, part: tuple[int, int] = (1, 1)) -> Iterator[None]:
    """Holds the share ``part`` = (k, n) of a cache's folder.

    Errors: ``LockedError`` that says who holds it, or who holds another division of the work (2/4 beside 1/1).
    """
    path = folder / f".writing-{part[0]}of{part[1]}.lock"
    fd = _take(path)
    if fd is None:
        raise LockedError(f"{folder} is being written by {_holder(path)}: wait for it, or end it")
    try:
        os.ftruncate(fd, 0)
        who = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.pwrite(fd, json.dumps({**who, "part": f"{part[0]}/{part[1]}"}).encode(), 0)
        for other in sorted(folder.glob(".writing-*.lock")):
            match = _LOCK.fullmatch(other.name)
            if match and int(match[2]) != part[1] and _is_held(other):
                raise LockedError(
                    f"{folder} is being written by {_holder(other)}: wait for it, or share the work as it does "
                    f"(--part K/{match[2]})"
                )
        yield
    finally:
        _give(path, fd)


@contextlib.contextmanager
def changing(folder: Path) -> Iterator[None]:
    """Held while the manifest is read, changed and written; waits for its turn."""
    with _folder_locked(folder):
        path, mine = folder / MANIFEST_LOCK, f"{writer_name()}{secrets.token_hex(4)}"
        _create_alone(path, mine)
        try:
            yield
        finally:
            if _content(path) == mine:
                path.unlink(missing_ok=True)


def is_lock(name: str) -> bool:
    """Whether a file in a cache's folder is one of these locks."""
    return name.startswith(MANIFEST_LOCK) or _LOCK.fullmatch(name) is not None


def remove_stale_locks(folder: Path) -> None:
    """Removes the locks of processes that were killed while they held them."""
    for path in folder.glob(".writing-*.lock"):
        if _LOCK.fullmatch(path.name):
            _is_held(path)
    for path in folder.glob(f"{MANIFEST_LOCK}*"):
        found = _content(path)
        if is_dead(found):
            _remove_stale(path, found)


def _take(path: Path) -> int | None:
    """A descriptor of the lock's file, or None where another process holds it."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                os.close(fd)
                return None
            reason = error.strerror or error
            log.warning(
                f"no locks on this file system ({reason}): see to it that each --part is run once, or work is doubled"
            )
            return fd
        if _is_at(fd, path):
            return fd
        os.close(fd)  # its last holder removed the file between our open and our lock


def _give(path: Path, fd: int) -> None:
    """Removes the lock's file and then lets go of it, so that nobody can lock a file that has no name."""
    if _is_at(fd, path):
        path.unlink(missing_ok=True)
    os.close(fd)


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _is_held(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        return error.errno in _HELD
    _give(path, fd)  # left by a process that was killed
    return False


def _holder(path: Path) -> str:
    try:
        who = json.loads(path.read_text())
        return f"process {who['pid']} on {who['host']} (part {who['part']}, since {who['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


@contextlib.contextmanager
def _folder_locked(folder: Path) -> Iterator[None]:
    """Lets the processes of this host take turns in an orderly way, where the file system can do that."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        # not granted on NFS, where a folder can't be opened for writing: the file below still is exclusive
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _create_alone(path: Path, mine: str) -> None:
    """Waits until this process is the one that makes the link; removes one that its maker can't remove.

    A symbolic link that leads nowhere: made in one step together with what it says, unlike a file.
    """
    seen, since = "", time.monotonic()
    while True:
        try:
            os.symlink(mine, path)
        except FileExistsError:
            found = _content(path)
            if found != seen:
                seen, since = found, time.monotonic()
            if is_dead(found) or time.monotonic() - since > PATIENCE_S:
                _remove_stale(path, found)
            else:
                time.sleep(0.002 + 0.01 * secrets.randbelow(100) / 100)
            continue
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            return  # no symbolic links here, as on some network drives: the folder's lock is all there is
        return


def _remove_stale(path: Path, found: str) -> None:
    """Takes the link away under another name first: of several that try, one gets it."""
    aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return
    taken = _content(aside)
    if taken != found:  # a new one, made since we looked: back to its place
        with contextlib.suppress(FileExistsError):
            os.symlink(taken, path)
    aside.unlink()


def _content(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:  # gone meanwhile
        return ""
