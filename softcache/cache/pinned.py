"""Files of a local cache that must be, byte for byte, what a pin says."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from softcache.cache.shard import read_blocks
from softcache.cache.whereabouts import described
from softcache.errors import IntegrityError
from softcache.store.local import Local


class Pinned:
    """Each file is read and compared with the listing when it is first opened, which takes time, and compared by its
    size and times later.

    Errors of making one: ``CacheError`` where the folder has no listing, ``IntegrityError`` where it has none of the
    ``expected`` pins, or its manifest isn't the listed one.
    """

    def __init__(self, folder: Path, expected: Iterable[str]):
        whole = described(Local(folder), expected, listed=True)
        assert whole.listing is not None
        self.listing = whole.listing
        self.manifest = whole.content
        self._folder = folder
        self._proven: dict[str, tuple[int, ...]] = {}

    def prove(self, fd: int, path: Path) -> None:
        """Errors: ``IntegrityError`` where an open file of the cache isn't what is listed."""
        name = path.relative_to(self._folder).as_posix()
        status = os.fstat(fd)
        state = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if self._proven.get(name) == state:
            return
        listed, digest = self.listing.files.get(name), hashlib.sha256()
        if listed is not None and listed.size == status.st_size:
            for block in read_blocks(fd, 0, status.st_size):
                digest.update(block)
        if listed is None or digest.hexdigest() != listed.sha256:
            raise IntegrityError(f"{path} is not the file that --expect stands for")
        self._proven[name] = state
