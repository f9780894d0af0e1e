"""Files that exist whole or not at all: written beside their place, flushed to the disk, renamed.

A temporary name says who writes it, ``.logits-00000.h5~host~boot~pid~random.part``, so that what a dead process
of this host left behind can be told from what a live one, or another host's, is still writing.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import secrets
import socket
import stat
from pathlib import Path

from softcache.errors import SoftcacheError

_FULL = {errno.ENOSPC: "no space left", errno.EDQUOT: "quota exceeded", errno.EFBIG: "file size limit"}
# Nine digits at most: os.kill takes 32 bits, and no system counts its processes that far.
_WRITER = re.compile(r"(?P<host>[^~]*)~(?P<boot>[^~]*)~(?P<pid>[1-9][0-9]{0,8})~(?P<token>[0-9a-f]+)")
_PART = re.compile(r"\.(?P<name>.+)~(?P<writer>[^~]*~[^~]*~[0-9]+~[0-9a-f]+)\.part")


def temporary_path(final: Path) -> Path:
    """A temporary name in the same folder, unique to this process and call."""
    return final.with_name(f".{final.name}~{writer_name()}{secrets.token_hex(4)}.part")


def writer_name() -> str:
    """Who this process is, among all that may write to a shared folder: ``host~boot~pid~random``."""
    return f"{_host()}~{_boot()}~{os.getpid()}~{_token(os.getpid())}"


def is_dead(writer: str) -> bool:
    """Whether the process of a ``writer_name`` is certainly gone: of this host, and ended or of an earlier boot.

    Whatever can't be known counts as alive: another host, another namespace of process ids on this one (a container
    beside this one), a process id that somebody else has by now, a text that names no writer.
    """
    match = _WRITER.fullmatch(writer)
    if match is None:
        return False
    host, boot, pid, token = match["host"], match["boot"], int(match["pid"]), match["token"]
    if host != _host():
        return False
    if boot.partition(".")[0] != _boot().partition(".")[0]:
        return True
    if boot != _boot():
        return False
    if pid == os.getpid():
        return not token.startswith(_token(os.getpid()))  # of an earlier process with our number
    return not _alive(pid)


def commit(part: Path, final: Path) -> None:
    """Renames a flushed file into its place and makes the rename itself durable."""
    os.replace(part, final)
    sync_folder(final.parent)


def replace_file(final: Path, content: bytes) -> None:
    """Writes ``final`` at once or not at all."""
    part = temporary_path(final)
    try:
        with open(part, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        commit(part, final)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def check_in_place(path: Path) -> None:
    """Refuses a name that is no file of its own, before a file is written in place or read to be replaced: a folder may
    come from a stranger, and a link in it may lead to any file.

    Errors: ``SoftcacheError`` that names the link, folder, pipe or device.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISLNK(mode):
        raise SoftcacheError(f"{path} is a link, and softcache opens no such file through a link: remove it")
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise SoftcacheError(f"{path} is {what}, where softcache needs a file: remove it")


def open_in_place(path: Path, flags: int) -> int:
    """A descriptor of a file that is changed where it lies. No link is followed, and nothing is truncated.

    Errors: ``SoftcacheError`` as ``check_in_place``, ``OSError`` for all else.
    """
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            check_in_place(path)
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise SoftcacheError(f"{path} is no regular file: remove it")
    return fd


def make_folder_within(folder: Path) -> None:
    """A folder within one of softcache's own, which is on the disk when this returns.

    Errors: ``SoftcacheError`` where that name is a link or no folder.
    """
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder)
    check_no_link(folder)
    sync_folder(folder.parent)  # also where it was there: who made it may have been killed before this line


def check_no_link(folder: Path) -> None:
    """Errors: ``SoftcacheError`` where a folder that is to be written into is a link, or no folder."""
    if folder.is_symlink():
        raise SoftcacheError(
            f"{folder} is a link, and softcache writes only into folders of the cache itself: remove the link, or put "
            "the folder that it leads to in its place"
        )
    if folder.exists() and not folder.is_dir():
        raise SoftcacheError(f"{folder} is no folder: remove it")


def why_full(error: BaseException | None) -> str | None:
    """``ENOSPC, no space left`` where an error says that the disk is full in one of the ways that there are."""
    if not isinstance(error, OSError) or error.errno not in _FULL:
        return None
    return f"{errno.errorcode[error.errno]}, {_FULL[error.errno]}"


def sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def dead_temporaries(folder: Path, *, deep: bool = True) -> list[Path]:
    """Temporary files in ``folder`` whose writer is certainly gone. ``deep``: also in the folders within it, but for
    those that are links."""
    found = []
    for path in sorted(folder.rglob(".*.part") if deep else folder.glob(".*.part")):
        match = _PART.fullmatch(path.name)
        if match and is_dead(match["writer"]):
            found.append(path)
    return found


def remove_dead_temporaries(folder: Path, *, deep: bool = True) -> list[Path]:
    """Removes what ``dead_temporaries`` lists and says what it removed."""
    dead = dead_temporaries(folder, deep=deep)
    for path in dead:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
    return dead


def remove_temporaries_of(folder: Path, writer: str) -> None:
    """Removes all temporary files in ``folder``, and in the folders within it, of the process that ``writer_name``
    named so, by whoever knows that it is gone."""
    for path in folder.rglob(".*.part"):
        match = _PART.fullmatch(path.name)
        if match and match["writer"].startswith(writer):
            path.unlink(missing_ok=True)


def is_temporary(name: str) -> bool:
    return _PART.fullmatch(name) is not None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@functools.cache
def _host() -> str:
    """The host's name, and its machine id where it has one: names such as ``localhost`` are not unique."""
    name = re.sub(r"[^A-Za-z0-9.\-]", "-", socket.gethostname())[:32] or "host"
    try:
        return f"{name}.{Path('/etc/machine-id').read_text().strip()[:8]}"
    except OSError:  # not Linux, or a container
        return name


@functools.cache
def _boot() -> str:
    """Changes with every start of the machine, so that a pid of before can't be mistaken for one of now; after the
    dot the namespace that pids are counted in, for containers that share a host's name and disk."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
        return f"{boot}.{re.sub('[^0-9]', '', os.readlink('/proc/self/ns/pid'))}"
    except OSError:  # not Linux
        return "0.0"


@functools.cache
def _token(pid: int) -> str:
    """Random for each process; a forked child has another pid and so another token."""
    return secrets.token_hex(4)
