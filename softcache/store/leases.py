"""Which files of a shared folder its processes are using, as each of them writes it down in a file of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from softcache import strictjson
from softcache.atomic import is_dead, writer_name

_LEASE = re.compile(r"\.in-use~(?P<writer>[^~]*~[^~]*~[0-9]+~[0-9a-f]+)")


@dataclass
class Lease:
    """``files``: those that a process holds, name → bytes; ``fetching``: those of them that it is getting."""

    files: dict[str, int] = field(default_factory=dict)
    fetching: set[str] = field(default_factory=set)


class Leases:
    """Those in ``folder``. All methods are to be called under the folder's lock."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._own = folder / f".in-use~{writer_name()}"
        self._written = ""

    def others(self) -> list[Lease]:
        """Of processes that may be alive. What dead ones left is removed; so is what can't be read, as nobody writes
        such."""
        found = []
        for path in self._folder.glob(".in-use~*"):
            match = _LEASE.fullmatch(path.name)
            if match is None or path == self._own:
                continue
            if is_dead(match["writer"]):
                path.unlink(missing_ok=True)
                continue
            try:
                document = strictjson.loads(path.read_bytes())
                files = {str(name): int(size) for name, size in document["files"].items()}
                found.append(Lease(files, {str(name) for name in document["fetching"]}))
            except FileNotFoundError:
                continue
            except (ValueError, KeyError, TypeError, AttributeError):
                path.unlink(missing_ok=True)
        return found

    def write(self, lease: Lease) -> None:
        """What this process holds from now on; nothing where that is nothing."""
        text = json.dumps({"files": lease.files, "fetching": sorted(lease.fetching)}, separators=(",", ":"))
        if text == self._written and self._own.exists():
            return
        if lease.files:
            self._own.write_text(text)  # nobody reads it while the folder is locked
        else:
            with contextlib.suppress(OSError):
                os.unlink(self._own)
        self._written = text

    @property
    def bytes(self) -> int:
        """How much the leases of all processes take."""
        total = 0
        for path in self._folder.glob(".in-use~*"):
            with contextlib.suppress(FileNotFoundError):
                total += path.stat().st_size
        return total
