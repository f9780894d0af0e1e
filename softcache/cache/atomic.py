"""Files that exist whole or not at all: written beside their place, flushed to the disk, renamed.

A temporary name says who writes it, ``.logits-00000.h5~host~boot~pid~random.part``, so that what a dead process
of this host left behind can be told from what a live one, or another host's, is still writing.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
from pathlib import Path

_PART = re.compile(r"\.(?P<name>.+)~(?P<host>[^~]*)~(?P<boot>[^~]*)~(?P<pid>\d+)~[0-9a-f]+\.part")


def part_path(final: Path) -> Path:
    """A temporary name in the same folder, unique to this process and call."""
    return final.with_name(f".{final.name}~{_host()}~{_boot()}~{os.getpid()}~{secrets.token_hex(4)}.part")


def commit(part: Path, final: Path) -> None:
    """Renames a flushed file into its place and makes the rename itself durable."""
    os.replace(part, final)
    sync_folder(final.parent)


def replace_file(final: Path, content: bytes) -> None:
    """Writes ``final`` at once or not at all."""
    part = part_path(final)
    try:
        with open(part, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        commit(part, final)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def dead_parts(folder: Path) -> list[Path]:
    """Temporary files below ``folder`` whose writer is certainly gone: this host's, of a process that has ended
    or of an earlier boot. Those of other hosts are never listed."""
    found = []
    for path in sorted(folder.rglob(".*.part")):
        match = _PART.fullmatch(path.name)
        if match and match["host"] == _host() and (match["boot"] != _boot() or not _alive(int(match["pid"]))):
            found.append(path)
    return found


def remove_dead_parts(folder: Path) -> list[Path]:
    """Removes what ``dead_parts`` lists and says what it removed."""
    dead = dead_parts(folder)
    for path in dead:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
    return dead


def is_part(name: str) -> bool:
    return _PART.fullmatch(name) is not None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9.\-]", "-", socket.gethostname()) or "host"


def _boot() -> str:
    """Changes with every start of the machine, so that a pid of before can't be mistaken for one of now."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
    except OSError:  # not Linux
        return "0"
