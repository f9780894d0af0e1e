"""A cache that is written into a store: shards are made in a folder of this machine, stored, and removed here.

The folder is the cache as far as it is here: its small files, shards that wait to be stored, and such as are read
again. What exists in the store or here is what is done.
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from softcache.atomic import temporary_path
from softcache.cache.listing import LISTING, Listed, Listing, names_of
from softcache.cache.manifest import Manifest
from softcache.errors import CacheError
from softcache.store.local import Local, sha256_of
from softcache.store.store import Store

log = logging.getLogger(__name__)

WAITING = 4  # shards that are made and wait to be stored; the teacher waits when there are more
KNOWN = ".stored.jsonl"  # sizes and sha256 of what was stored from here, so that it needn't be read again


class Uploading:
    """``folder``: where shards are made. ``check``: raises where this process may no longer write to the store.
    ``manifest``: the one that the store has. It says which shards that lie there belong to the cache: one that another
    cache left isn't taken for done."""

    def __init__(self, store: Store, folder: Path, manifest: Manifest | None, check: Callable[[], None]):
        self.folder, self.where = folder, store.where
        self._store, self._check = store, check
        there = store.files()
        own = [] if manifest is None else names_of(manifest, there)
        self._stored = {name: there[name] for name in own if name.startswith("view-")}
        self._local = Local(folder)
        self._known = _read_known(folder / KNOWN)
        self._held: Counter[str] = Counter()
        self._lock = threading.RLock()
        self._waiting: queue.Queue[str | None] = queue.Queue(WAITING)
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._store_all, name="softcache-upload", daemon=True)
        self._thread.start()

    @property
    def size(self) -> int:
        """Bytes of the shards that the store has."""
        with self._lock:
            return sum(self._stored.values())

    def in_view(self, view: int) -> list[str]:
        """The files of a view that are in the store or here."""
        folder = f"view-{view:04d}"
        with self._lock:
            found = [name for name in self._stored if name.startswith(f"{folder}/")]
        here = self.folder / folder
        names = [path.name for path in here.iterdir() if not path.name.startswith(".")] if here.is_dir() else []
        return [*found, *(f"{folder}/{name}" for name in names if f"{folder}/{name}" not in found)]

    def committed(self, path: Path) -> None:
        """A shard has been made: it is stored, by a thread, and then removed here. Waits where many are to be.

        Errors: those of storing an earlier one.
        """
        self._put(path.relative_to(self.folder).as_posix())

    def need(self, names: Collection[str], *, wait: bool = True) -> bool:
        """Makes sure that files are in the folder until ``done``."""
        for name in names:
            with self._lock:
                self._held[name] += 1
                if (self.folder / name).exists():
                    continue
                if name not in self._stored:
                    self._held[name] -= 1
                    raise CacheError(f"{self.where} has no {name}")
                final = self.folder / name
                final.parent.mkdir(exist_ok=True)
                self._local.take(name, self._got(name))
        return True

    def done(self, names: Collection[str]) -> None:
        for name in names:
            with self._lock:
                self._held[name] -= 1
                if self._held[name] <= 0:
                    del self._held[name]
                    if name in self._stored:
                        (self.folder / name).unlink(missing_ok=True)

    def soon(self, whom: object, names: Collection[str]) -> None:
        """Nothing is fetched ahead."""

    def leftovers(self) -> None:
        """Stores shards that an earlier process made and couldn't store any more."""
        for path in sorted(self.folder.glob("view-*/[!.]*.h5")):
            self.committed(path)

    def change(self) -> None:
        """Takes away the listing of an earlier state: until the next one is there, nobody reads the cache."""
        self._check()
        self._store.delete(LISTING)

    def put_small(self, names: Collection[str]) -> None:
        """Stores files that are once per cache, in this order, where the store has others."""
        for name in names:
            self._check()
            path = self.folder / name
            file = Listed(path.stat().st_size, sha256_of(path))
            if self._known.get(name) != file or self._store.size(name) != file.size:
                if self._store.sha256(name, file.size) != file.sha256:
                    self._store.put(name, path, file.sha256)
                self._know(name, file)

    def finish(self) -> None:
        """Waits until everything that was committed is stored. Errors: those of storing it."""
        if self._thread.is_alive():
            with contextlib.suppress(queue.Full):
                self._put(None)
            self._thread.join()
        self._raise()

    def clear(self) -> None:
        """Removes the shards that the store has from this machine, even those that something here still refers to: what
        is mapped stays readable."""
        with self._lock:
            for name in self._stored:
                (self.folder / name).unlink(missing_ok=True)

    def stop(self) -> None:
        """Stores nothing more."""
        self._failure = self._failure or CacheError("stopped")
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(None)
        self._thread.join()

    def listing(self, cache_id: str, names: Collection[str]) -> Listing:
        """Of these files in the store. Those that another process has stored are read."""
        files = {}
        sizes = self._store.files()
        for name in names:
            known = self._known.get(name)
            if known is None or known.size != sizes.get(name):
                sha256 = self._store.sha256(name, sizes[name])
                assert sha256 is not None, name
                known = Listed(sizes[name], sha256)
                self._know(name, known)
            files[name] = known
        return Listing(cache_id, files)

    def _got(self, name: str) -> Path:
        part = temporary_path(self.folder / name)
        self._store.get(name, part, self._stored[name])
        return part

    def _put(self, name: str | None) -> None:
        while True:
            self._raise()
            with contextlib.suppress(queue.Full):
                self._waiting.put(name, timeout=0.2)
                return

    def _raise(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _store_all(self) -> None:
        try:
            for name in iter(self._waiting.get, None):
                if self._failure is not None:
                    return
                self._check()
                path = self.folder / name
                sha256, size = sha256_of(path), path.stat().st_size
                if name not in self._stored or self._store.sha256(name, size) != sha256:
                    self._store.put(name, path, sha256)
                self._know(name, Listed(size, sha256))
                with self._lock:
                    self._stored[name] = size
                    if not self._held[name]:
                        path.unlink(missing_ok=True)
        except BaseException as error:  # handed to the thread that commits the next one, which raises it
            self._failure = error

    def _know(self, name: str, file: Listed) -> None:
        with self._lock:
            if self._known.get(name) != file:
                self._known[name] = file
                with open(self.folder / KNOWN, "a") as known:
                    known.write(json.dumps([name, file.size, file.sha256]) + "\n")


def _read_known(path: Path) -> dict[str, Listed]:
    """What an earlier process wrote down; a line that it didn't finish is left out."""
    found = {}
    try:
        lines = path.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    for line in lines:
        with contextlib.suppress(ValueError, TypeError):
            name, size, sha256 = json.loads(line)
            found[str(name)] = Listed(int(size), str(sha256))
    return found


_of_folder: dict[Path, Uploading] = {}


@contextlib.contextmanager
def stored_from(folder: Path, uploading: Uploading) -> Iterator[None]:
    """Within it every ``Cache`` of this folder, in this process, has its shards in that store."""
    _of_folder[folder.resolve()] = uploading
    try:
        yield
    finally:
        del _of_folder[folder.resolve()]


def uploading_of(folder: Path) -> Uploading | None:
    return _of_folder.get(folder.resolve()) if _of_folder else None
