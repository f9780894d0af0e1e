"""One process at a time at a folder, over filelock.

A lock is the kernel's ``flock`` where the file system has it: the kernel takes it back when its holder ends, however
it ends. Elsewhere, and for what must be exclusive even where ``flock`` is granted to everybody, it is a file that only
one process can create (filelock's ``SoftFileLock``). Such a file is taken over only when its holder was a process of
this host that is certainly gone, never because it is old, so there are never two holders.

filelock leaves three things to this module. It follows no link, but waits at one, so what isn't a lock file is refused
by name beforehand. It doesn't say who holds an ``flock``, so the holder writes a line into the file. It leaves the
file behind, so the file is removed while it is still held; whoever waits for it sees that it has no name any more and
begins again.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from softcache import strictjson
from softcache.atomic import check_in_place, open_in_place
from softcache.errors import LockedError, SoftcacheError

log = logging.getLogger(__name__)

# Whoever looks for locks that a dead process left holds each of them for a moment: that is no reason to be refused.
MOMENT_S = 1.0
POLL_S = 0.01
SOFT = ".soft"  # ends the name of the file that stands for a lock where the file system has none
_NO_FLOCK = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}
_NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextlib.contextmanager
def locked(path: Path, what: str, *, wait: float = MOMENT_S, soft: bool = False, part: str = "") -> Iterator[None]:
    """Holds the lock ``path``, whose folder must exist.

    ``what``: what the holder does, to be continued by "by process 17": ``runs/a is being trained``. ``wait``: seconds.
    ``soft``: exclusive by a file's existence, not by ``flock``. ``part``: the share of the work, for messages.

    Errors: ``LockedError`` that says who holds it; ``SoftcacheError`` where the name is a link, a folder or the like,
    or where the folder can't be written to.
    """
    lock = _take(path, what, wait, soft)
    try:
        if not isinstance(lock, SoftFileLock):
            _sign(path, part)
        yield
    finally:
        _give(lock, path)


def is_held(path: Path, *, soft: bool = False) -> bool:
    """Whether a process holds this lock; one that a dead process left is removed."""
    try:
        lock = _take(path, "", 0, soft)
    except LockedError:
        return True
    _give(lock, path)
    return False


def remove_of(path: Path, pid: int, host: str) -> bool:
    """Removes a soft lock that names this process as its holder; returns whether it did. For whoever knows that the
    process is gone, though it was another host's."""
    text = signature(path)
    if not _is_record(text) or text.splitlines()[:2] != [str(pid), host]:
        return False
    path.unlink(missing_ok=True)
    return True


def signature(path: Path) -> str:
    """What a lock's file says of its holder, for comparison; nothing where it isn't there or can't be read."""
    try:
        fd = open_in_place(path, os.O_RDONLY)
    except (OSError, SoftcacheError):  # gone meanwhile, or another user's
        return ""
    try:
        return os.read(fd, 1000).decode(errors="replace")
    finally:
        os.close(fd)


def holder(path: Path) -> str:
    """Who holds a lock, for a message: as much of it as can be known."""
    text, owner = signature(path), _other_owner(path)
    if _is_record(text):  # filelock's own, of a soft lock: process, host, when it began
        pid, host, *_ = text.splitlines()
        return f"{_process(pid, host)}{owner}"
    try:
        note = strictjson.loads(text)
        since = re.sub(r"[^\d :-]", "", str(note["since"]))[:19]
        part = re.sub(r"[^\d/]", "", str(note["part"]))[:21]
        who = _process(str(note["pid"]), str(note["host"]))
        return f"{who}{owner} ({f'part {part}, ' if part else ''}since {since})"
    except (ValueError, KeyError, TypeError):
        return f"another process{owner}"


def _take(path: Path, what: str, wait: float, soft: bool) -> BaseFileLock:
    _refuse_other_files(path)
    mode = _mode(path.parent)
    # Without filelock's own fallback, which uses the same name, warns, and covers one of several kinds of error.
    lock = SoftFileLock(path, mode=mode) if soft else FileLock(path, mode=mode, fallback_to_soft=False)
    try:
        lock.acquire(timeout=wait, poll_interval=POLL_S)
    except Timeout:
        raise _held(path, what, stays=soft) from None
    except OSError as error:
        if not soft and error.errno in _NO_FLOCK:
            log.warning(
                f"no locks on the file system of {path.parent} ({error.strerror}): a lock of a process that is killed "
                "on another host has to be removed by hand"
            )
            _remove_empty(path)
            return _take(path.with_name(path.name + SOFT), what, wait, True)
        if error.errno in _NOT_ALLOWED and path.exists() and os.access(path.parent, os.W_OK):
            raise _held(path, what, stays=True) from None  # another user's, and not ours to open
        if error.errno in _NOT_ALLOWED:
            raise SoftcacheError(f"can't write to {path.parent}: {error.strerror}") from None
        raise
    return lock


def _give(lock: BaseFileLock, path: Path) -> None:
    try:
        if not isinstance(lock, SoftFileLock):
            # before it is released, so that nobody holds a file that has lost its name
            with contextlib.suppress(PermissionError):  # another user's, in a folder with a sticky bit
                path.unlink(missing_ok=True)
    finally:
        lock.release()


def _sign(path: Path, part: str) -> None:
    """Says who holds the lock. For messages only: nothing is decided by what a lock file says."""
    who = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S"), "part": part}
    try:
        fd = open_in_place(path, os.O_WRONLY)
    except FileNotFoundError:  # removed by another holder, where flock is granted to everybody
        return
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps(who).encode(), 0)
    finally:
        os.close(fd)


def _held(path: Path, what: str, *, stays: bool) -> LockedError:
    """``stays``: the lock isn't taken back by itself when its holder ends."""
    cure = f"; if it is gone already, remove {path}" if stays else ""
    return LockedError(f"{what} by {holder(path)}: wait for it, or end it{cure}")


def _process(pid: str, host: str) -> str:
    """A lock's words about its holder, of which nothing but digits and a name's letters reach the terminal."""
    pid, host = re.sub(r"[^0-9]", "", pid)[:10], re.sub(r"[^A-Za-z0-9.\-]", "?", host)[:64]
    stopped = ""
    if host == socket.gethostname():
        with contextlib.suppress(OSError, IndexError):  # not Linux, or gone
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            stopped = f", which is stopped (kill -CONT {pid} lets it go on)" if state in "Tt" else ""
    return f"process {pid} on {host}{stopped}"


def _other_owner(path: Path) -> str:
    """The user whose file a lock is, where that is another one."""
    with contextlib.suppress(OSError):
        owner = os.lstat(path).st_uid
        if owner != os.geteuid():
            return f" of user {owner}"
    return ""


def _is_record(text: str) -> bool:
    return re.fullmatch(r"[0-9]+\n[^\n]+\n([0-9]+\n)?", text) is not None


def _refuse_other_files(path: Path) -> None:
    """A folder may come from a stranger, and a name in it may be made to lead to any file."""
    check_in_place(path)
    with contextlib.suppress(FileNotFoundError):
        if os.lstat(path).st_nlink > 1:
            raise SoftcacheError(f"{path} is a hard link to a file that has other names too: remove it")


def _mode(folder: Path) -> int:
    """A lock can be opened by whoever may write to its folder, so that a team shares it."""
    return 0o666 if stat.S_IMODE(os.stat(folder).st_mode) & 0o022 else 0o644


def _remove_empty(path: Path) -> None:
    """What filelock made before it found that the file system has no locks. The name means nothing there."""
    with contextlib.suppress(FileNotFoundError):
        if os.lstat(path).st_size == 0:
            path.unlink()
