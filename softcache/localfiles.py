"""Where the files of this user lie on this machine, and paths that must be of this machine.

``SOFTCACHE_STATE`` sets the folder of what the user gave for which cache or run (by default ``softcache`` in
``$XDG_STATE_HOME``, which is ``~/.local/state``), ``SOFTCACHE_CACHE`` that of what can be computed again (by default
``softcache`` in ``$XDG_CACHE_HOME``, which is ``~/.cache``).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from pathlib import Path
from typing import Any

from softcache.addresses import printable
from softcache.atomic import replace_file
from softcache.errors import UsageError

log = logging.getLogger(__name__)

# pathlib makes one slash of two; a drive of Windows has one letter.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+:/")


def state_folder() -> Path:
    return _own("SOFTCACHE_STATE", "XDG_STATE_HOME", ".local/state")


def cache_folder() -> Path:
    return _own("SOFTCACHE_CACHE", "XDG_CACHE_HOME", ".cache")


def local_path(path: str | os.PathLike[str], option: str) -> Path:
    """``path``, where it is one of this machine's file systems.

    Errors: ``UsageError`` that names ``option`` for an address such as ``s3://bucket/folder``.
    """
    if _ADDRESS.match(os.fspath(path)):
        raise UsageError(f"{option} {printable(path)} is an address, and has to be a folder of this machine")
    return Path(path)


def known_fingerprint(path: Path, stamps: dict[str, Any], what: str = "") -> str | None:
    """The fingerprint of ``path`` that was kept, where its stamps were then what they are now.

    ``what``: tells several fingerprints of one path apart.
    """
    try:
        record = json.loads(_fingerprint_file(path, what).read_bytes())
        return str(record["sha256"]) if {**record, **stamps} == record else None
    except (OSError, ValueError, TypeError, KeyError):  # none, half of one, or none of ours
        return None


def keep_fingerprint(path: Path, stamps: dict[str, Any], sha256: str, what: str = "") -> None:
    """Keeps a fingerprint in the user's cache folder; where that can't be written to, nothing is kept."""
    file = _fingerprint_file(path, what)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        record = {"path": os.fsencode(os.path.realpath(path)).decode(errors="replace"), **stamps, "sha256": sha256}
        replace_file(file, (json.dumps(record) + "\n").encode())
    except OSError as error:  # only speed is lost
        log.debug(f"the fingerprint of {path} is not kept: {error}")


def _fingerprint_file(path: Path, what: str) -> Path:
    name = hashlib.sha256(os.fsencode(os.path.realpath(path)) + b"\0" + what.encode()).hexdigest()
    return cache_folder() / "fingerprints" / f"{name[:40]}.json"


def _own(variable: str, xdg: str, default: str) -> Path:
    if chosen := os.environ.get(variable):
        return Path(chosen).expanduser()
    home = os.environ.get(xdg, "")
    # The specification of these variables says that relative paths are to be ignored.
    base = home if os.path.isabs(home) else os.path.join(os.path.expanduser("~"), default)
    # Where there is no home, nothing can be kept: no folder can be made below this file.
    return Path(base if os.path.isabs(base) else os.devnull) / "softcache"
