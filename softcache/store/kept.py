"""Files of stores in a folder of this machine that never grows beyond a bound, shared by its processes.

What is wanted is reserved before it is fetched: every process writes down which files it uses and how large they are
(``leases``), under the folder's lock. So the sum of all files that are there or on their way is known, and room is
made first, by removing files that nobody uses, the one first whose last use is longest ago. A file gets its name when
it has come whole and has the sha256 that it should have. Nothing else in that folder is counted or removed.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from softcache.atomic import commit, is_temporary, remove_dead_temporaries, temporary_path
from softcache.console import decimal_size
from softcache.errors import StoreError, UsageError
from softcache.locks import locked
from softcache.store.leases import Lease, Leases

MARGIN = 2**18  # bytes of the bound that are left to the folder's own small files
POLL_S = 0.05
LOCK_S = 120.0  # to look through the folder and to remove files takes milliseconds; more where a process is stopped
WAIT_S = 600.0  # for other processes that use what would have to go
AT_ONCE = 4  # files that a process fetches at once

# A file of a cache in the folder of its group. Whatever has another name isn't from here, and isn't touched.
_GROUP = re.compile(r"[0-9a-f]{64}")
_VIEW = re.compile(r"view-\d{4,5}")
_NAME = re.compile(r"cache\.json|[^./~][^/~]*\.h5")

Fetch = Callable[[str, Path], None]  # writes the file of this name to that path, whole and checked, or raises


@dataclass(frozen=True)
class Wanted:
    """``group``: the folder of a cache's files, 64 digits from 0 to f; ``files``: name → bytes; ``fetch``: gets one
    that isn't there."""

    group: str
    files: Mapping[str, int]
    fetch: Fetch

    def key(self, name: str) -> str:
        return f"{self.group}/{name}"


class Kept:
    """A folder of at most ``limit`` bytes. One object serves a process and all of its threads.

    ``wait_s``: how long to wait for other processes to use less.
    """

    _of_process: ClassVar[dict[str, Kept]] = {}

    @classmethod
    def of(cls, folder: Path, limit: int) -> Kept:
        """The one of a folder in this process; the bound that was asked for last holds."""
        folder.mkdir(parents=True, exist_ok=True)
        known = os.path.realpath(folder)
        if known not in cls._of_process:
            cls._of_process[known] = cls(folder, limit)
        made = cls._of_process[known]
        made.limit = limit
        return made

    def __init__(self, folder: Path, limit: int, *, wait_s: float = WAIT_S):
        self.folder, self.limit = folder, limit
        self._wait_s = wait_s
        self._begin()

    def hold(
        self,
        wanted: Wanted,
        names: Collection[str],
        *,
        wait: bool = True,
        unless: Callable[[], bool] | None = None,
    ) -> bool:
        """Makes sure that files are there, and that no process removes them until ``release``: each call counts.

        ``wait``: for room, where it is taken by files in use; without it nothing is done then. ``unless``: for files
        that are fetched ahead of need: says whether that has become needless. They don't count where others are told
        that the bound is too small, and the fetch ends with a ``StoreError`` then.
        Result: whether the files are held. Errors: ``UsageError`` with the size that is needed where the bound is too
        small for what this process uses; ``StoreError`` where other processes use too much for too long, and those of
        ``fetch``.
        """
        self._check_process()
        sizes = {wanted.key(name): wanted.files[name] for name in names}
        ahead = unless is not None
        if not self._reserve(sizes, wait, ahead):
            return False
        try:
            self._fetch({wanted.key(name): name for name in names}, wanted, unless or (lambda: False))
        except BaseException:
            self._drop(sizes, ahead)
            raise
        return True

    def release(self, wanted: Wanted, names: Collection[str], *, ahead: bool = False) -> None:
        """Ends one ``hold`` of each of these; ``ahead``: one with ``unless``."""
        if os.getpid() == self._pid:  # a child that was forked holds nothing of its parent's
            self._drop([wanted.key(name) for name in names], ahead)

    @property
    def room(self) -> int:
        """Bytes that files may take."""
        return self.limit - MARGIN

    def held_bytes(self) -> int:
        """Bytes of what this process holds."""
        with self._changing:
            return sum(self._sizes.values())

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._changing = threading.RLock()
        self._counts: Counter[str] = Counter()
        self._ahead: Counter[str] = Counter()  # of these, those that are fetched ahead of need
        self._sizes: dict[str, int] = {}
        self._fetching: set[str] = set()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._leases = Leases(self.folder)
        with self._locked():
            remove_dead_temporaries(self.folder)

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            self._begin()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with self._changing, locked(self.folder / ".lock", f"{self.folder} is being changed", wait=LOCK_S):
            yield

    def _reserve(self, sizes: Mapping[str, int], wait: bool, ahead: bool) -> bool:
        began = time.monotonic()
        while True:
            with self._locked():
                if self._fits(sizes):
                    self._counts.update(sizes.keys())
                    self._ahead.update(sizes.keys() if ahead else ())
                    self._sizes.update(sizes)
                    self._write()
                    return True
                needed = {key: size for key, size in self._sizes.items() if self._counts[key] > self._ahead[key]}
                own = sum({**needed, **sizes}.values())
            if not wait:
                return False
            if own > self.room:
                raise UsageError(
                    f"--local-size {decimal_size(self.limit)} is too small for {self.folder}: what has to be there at "
                    f"the same time takes {decimal_size(own + MARGIN)}"
                )
            if time.monotonic() - began > self._wait_s:
                raise StoreError(
                    f"{self.folder} is full of files that other processes use, for {self._wait_s:.0f} s now, and "
                    f"{decimal_size(own)} are needed here: raise --local-size, or give this process a --local-cache of "
                    "its own"
                )
            # less and less often: each look goes through the folder
            time.sleep(min(1.0, max(POLL_S, (time.monotonic() - began) / 10)))

    def _fits(self, sizes: Mapping[str, int]) -> bool:
        """Makes room for files; whether there is."""
        used = dict(self._sizes)
        for lease in self._leases.others():
            used.update(lease.files)
        used.update(sizes)
        unused = {key: status for key, status in self._there().items() if key not in used}
        files = sum(used.values()) + sum(status.st_size for status in unused.values())
        excess = files + self._leases.bytes - self.room
        if excess > sum(status.st_size for status in unused.values()):
            return False  # and nothing is removed in vain
        for key, status in sorted(unused.items(), key=lambda item: item[1].st_mtime_ns):
            if excess <= 0:
                break
            (self.folder / key).unlink(missing_ok=True)
            excess -= status.st_size
        return True

    def _there(self) -> dict[str, os.stat_result]:
        """Files that have come whole. Those on their way are reserved by whoever fetches them; what dead processes
        left of such is removed."""
        found, left = {}, False
        for group in _folders(self.folder, _GROUP):
            for folder in (group, *_folders(group, _VIEW)):
                for entry in _entries(folder):
                    if is_temporary(entry.name):
                        left = True
                    elif _NAME.fullmatch(entry.name):
                        with contextlib.suppress(FileNotFoundError):
                            status = entry.stat(follow_symlinks=False)
                            if not stat.S_ISDIR(status.st_mode):
                                found[Path(entry.path).relative_to(self.folder).as_posix()] = status
        if left:
            remove_dead_temporaries(self.folder)
        return found

    def _fetch(self, names: Mapping[str, str], wanted: Wanted, needless: Callable[[], bool]) -> None:
        """Gets what isn't there; what another thread or process is getting is waited for."""
        while True:
            if needless():
                raise StoreError("what was being fetched ahead is not needed any more")
            with self._locked():
                missing = [key for key in names if not self._is_there(key)]
                elsewhere = set().union(*(lease.fetching for lease in self._leases.others()))
                mine = [key for key in missing if key not in elsewhere and key not in self._fetching]
                self._fetching.update(mine)
                if mine:
                    self._write()
                if not missing:
                    for key in names:
                        os.utime(self.folder / key)
                    return
            if mine:
                self._fetch_all(mine, names, wanted, needless)
            else:
                time.sleep(POLL_S)

    def _fetch_all(
        self, keys: list[str], names: Mapping[str, str], wanted: Wanted, needless: Callable[[], bool]
    ) -> None:
        stop = threading.Event()

        def one(key: str) -> None:
            if not stop.is_set() and not needless():
                self._fetch_one(key, names[key], wanted)

        pool = ThreadPoolExecutor(min(AT_ONCE, len(keys)), thread_name_prefix="softcache-fetch")
        try:
            for done in [pool.submit(one, key) for key in keys]:
                done.result()
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
            with self._locked():
                self._fetching.difference_update(keys)
                self._write()

    def _fetch_one(self, key: str, name: str, wanted: Wanted) -> None:
        final = self.folder / key
        final.parent.mkdir(parents=True, exist_ok=True)
        part = temporary_path(final)
        try:
            wanted.fetch(name, part)
            commit(part, final)
        finally:
            part.unlink(missing_ok=True)

    def _is_there(self, key: str) -> bool:
        """A file of another size than it had when it came, or a link, is fetched again."""
        path = self.folder / key
        try:
            status = path.lstat()
        except FileNotFoundError:
            return False
        if status.st_size == self._sizes[key] and not path.is_symlink():
            return True
        path.unlink(missing_ok=True)
        return False

    def _drop(self, keys: Collection[str], ahead: bool) -> None:
        with self._locked():
            for key in keys:
                self._counts[key] -= 1
                self._ahead[key] -= ahead
                if self._counts[key] <= 0:
                    del self._counts[key], self._ahead[key]
                    self._sizes.pop(key, None)
                    with contextlib.suppress(FileNotFoundError):
                        os.utime(self.folder / key)
            self._write()

    def _write(self) -> None:
        self._leases.write(Lease(self._sizes, self._fetching))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as found:
        return list(found)
    return []


def _folders(folder: Path, name: re.Pattern[str]) -> list[Path]:
    """Folders of such names within a folder; no link is followed."""
    return [Path(e.path) for e in _entries(folder) if name.fullmatch(e.name) and e.is_dir(follow_symlinks=False)]
