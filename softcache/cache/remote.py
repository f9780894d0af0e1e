"""A cache in an object store, read through files of this machine.

Its manifest, labels, constants and kept samples are fetched first and stay; shards come when they are needed, or ahead
of that. All of them lie in a folder that is named by the cache's pin, laid out as the cache is, within the bounded
folder that all processes of the machine share (``store.kept``). Nothing is opened there that hasn't come whole, with
the size and sha256 that the cache's listing has.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softcache.cache.listing import LISTING, Listing
from softcache.cache.schema import MANIFEST
from softcache.cache.sending import fetched
from softcache.cache.whereabouts import Described, described
from softcache.errors import CacheError, SoftcacheError
from softcache.store.kept import Kept, Wanted
from softcache.store.store import Store

log = logging.getLogger(__name__)

DEFAULT_SIZE = 50 * 10**9


@dataclass
class _Ahead:
    """What is fetched before it is needed; ``held`` once it is there, unless it was ``dropped`` by then."""

    names: tuple[str, ...]
    held: bool = False
    dropped: bool = False


class Remote:
    """The files of a cache in ``store``, as far as they are on this machine.

    ``folder``: where they are. ``where``: how messages call the cache. Errors of making one: ``CacheError`` where
    there is no cache, ``IntegrityError`` where it is damaged or has none of the ``expected`` pins, ``UsageError`` where
    the local folder's bound is too small, ``StoreError`` where the store can't be reached.
    """

    def __init__(self, store: Store, kept: Kept, expected: Iterable[str] = ()):
        self._open(store, kept, described(store, expected, listed=True))

    def _open(self, store: Store, kept: Kept, whole: Described) -> None:
        assert whole.listing is not None
        self.listing: Listing = whole.listing
        self.where = store.where
        self._whole, self._store, self._kept = whole, store, kept
        self.folder: Path = kept.folder / whole.listing.pin
        files = {name: file.size for name, file in self.listing.files.items()}
        self._wanted = Wanted(whole.listing.pin, files, self._fetch)
        self._in_views: dict[int, list[str]] = {}
        for name in files:
            if name.startswith("view-"):
                self._in_views.setdefault(int(name[5:].partition("/")[0]), []).append(name)
        self._ahead: dict[object, _Ahead] = {}
        self._lock = threading.Lock()
        first = [name for name in files if not name.startswith("view-") and name not in (LISTING, "cache.h5")]
        self._kept.hold(self._wanted, first)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens it again, without asking the store what it is."""
        return _reopened, (self._store, self._kept.folder, self._kept.limit, self._whole)

    @property
    def room(self) -> int:
        """Bytes that the local folder has for shards, beside what stays in it."""
        fixed = sum(file.size for name, file in self.listing.files.items() if not name.startswith("view-"))
        return self._kept.room - fixed

    def in_view(self, view: int) -> list[str]:
        """The files of a view that the store has."""
        return self._in_views.get(view, [])

    def bytes_of(self, names: Collection[str]) -> int:
        return sum(self.listing.files[name].size for name in names)

    def need(self, names: Collection[str], *, wait: bool = True) -> bool:
        """Waits until these files are in ``folder``, where they stay until ``done``. Each call counts. Without ``wait``
        nothing is done where the files that are in use leave no room; the result is whether there was.

        Errors: ``CacheError`` for a file that the cache doesn't have, else as ``Kept.hold``.
        """
        for name in names:
            if name not in self.listing.files:
                raise CacheError(f"{self.where} has no {name}: it is not complete")
        if self._kept.hold(self._wanted, names, wait=False):
            return True
        self._drop_ahead(keep=set(names))
        return self._kept.hold(self._wanted, names, wait=wait)

    def done(self, names: Collection[str]) -> None:
        """Ends one ``need`` of these files: they may be removed where room is needed."""
        self._kept.release(self._wanted, names)

    def soon(self, whom: object, names: Collection[str]) -> None:
        """Fetches files in a thread, as far as there is room for all of them, and holds them until ``whom`` names
        others."""
        wanted = tuple(name for name in names if name in self.listing.files)
        with self._lock:
            before = self._ahead.get(whom)
            if before is not None and before.names == wanted:
                return
            ahead = _Ahead(wanted)
            if wanted:
                self._ahead[whom] = ahead
            else:
                self._ahead.pop(whom, None)
        if before is not None:
            self._drop(before)
        if wanted:
            threading.Thread(target=self._get_ahead, args=(ahead,), name="softcache-ahead", daemon=True).start()

    def _get_ahead(self, ahead: _Ahead) -> None:
        try:
            if not self._kept.hold(self._wanted, ahead.names, wait=False, unless=lambda: ahead.dropped):
                return
        except (SoftcacheError, OSError) as error:  # whoever needs them tries again, and is told
            log.debug(f"{self.where}: {error}")
            return
        with self._lock:
            ahead.held = not ahead.dropped
        if not ahead.held:
            self._kept.release(self._wanted, ahead.names, ahead=True)

    def _drop_ahead(self, keep: set[str]) -> None:
        with self._lock:
            going = [whom for whom, ahead in self._ahead.items() if not keep.intersection(ahead.names)]
            dropped = [self._ahead.pop(whom) for whom in going]
        for ahead in dropped:
            self._drop(ahead)

    def _drop(self, ahead: _Ahead) -> None:
        with self._lock:
            held, ahead.held, ahead.dropped = ahead.held, False, True
        if held:
            self._kept.release(self._wanted, ahead.names, ahead=True)

    def _fetch(self, name: str, to: Path) -> None:
        if name == MANIFEST:  # the bytes that were compared are those that are kept
            to.write_bytes(self._whole.content)
            return
        listed = self.listing.files[name]
        fetched(self._store, name, listed.size, listed.sha256, to)


def _reopened(store: Store, folder: Path, limit: int, whole: Described) -> Remote:
    made = Remote.__new__(Remote)
    made._open(store, Kept.of(folder, limit), whole)
    return made
