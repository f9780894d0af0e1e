"""A dump whose cache lies in an object store."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from softcache.addresses import DUMPED, refuse_unwritable
from softcache.atomic import is_temporary, replace_file
from softcache.cache.constants import constants_name
from softcache.cache.listing import LISTING, MAX_LISTING_BYTES, is_cache_file, names_of
from softcache.cache.locks import is_lock, remove_locks
from softcache.cache.manifest import Manifest
from softcache.cache.reader import Cache
from softcache.cache.schema import MANIFEST, MAX_MANIFEST_BYTES, ROWS, SAMPLES, VIRTUAL
from softcache.cache.sending import fetched
from softcache.cache.uploading import KNOWN, Uploading, stored_from
from softcache.config.dump import DumpConfig
from softcache.config.folders import make_folder
from softcache.errors import CacheError, UsageError
from softcache.localfiles import cache_folder, local_path
from softcache.locks import locked
from softcache.store.local import Local
from softcache.store.lock import StoreLock
from softcache.store.opened import open_store
from softcache.store.store import Store

ANNOUNCED = ".announced"  # the sha256 of the manifest that was last stored from here
LOCK = ".staging.lock"  # of the one process that dumps by way of this folder


@dataclass(frozen=True)
class Goal:
    """A store that is written to from ``folder``."""

    store: Store
    folder: Path
    uploading: Uploading

    def finish(self, codec: str | None) -> str:
        """Stores what is left, and the listing last; its pin."""
        self.uploading.finish()
        cache = Cache(self.folder, codec=codec)
        self.uploading.put_small(_small(cache))
        names = [name for name in names_of(cache.manifest, self.store.files()) if name != MANIFEST]
        listing = self.uploading.listing(cache.manifest.cache_id, [*names, MANIFEST])
        content = listing.render()
        if self.store.read(LISTING, MAX_LISTING_BYTES) != content:
            self.store.write(LISTING, content)
        _note(self.folder)
        self.uploading.clear()
        return listing.pin


@contextlib.contextmanager
def writing_to_store(config: DumpConfig) -> Iterator[tuple[DumpConfig, Goal]]:
    """The dump as one into a folder of this machine, whose shards are stored as they are made. A dry run stores nothing
    and leaves nothing on this machine.

    Errors: ``UsageError`` for an address that can't be written to, ``LockedError`` where another process dumps there.
    """
    assert config.out is not None
    if config.out.startswith("hf://"):
        raise UsageError(
            f"--out {config.out}: a dump isn't written to the hub, where each file would be a commit and all that a "
            "published copy leaves out would be in it: dump into a folder, and softcache copy it there"
        )
    refuse_unwritable(config.out, "--out", DUMPED)
    store = open_store(config.out, "--out")
    with contextlib.ExitStack() as held:
        if config.dry_run:
            folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="softcache-dry-run-")))
            check = _nothing
        else:
            folder, what = _staging(config), f"{store.where} is being written"
            make_folder(folder)
            # First this machine's, which is free at once where its process has been killed.
            held.enter_context(locked(folder / LOCK, what))
            check = held.enter_context(StoreLock(store, what)).check
            remove_locks(folder)  # under these two locks nobody else is at work in it
        manifest = _begin(store, folder)
        uploading = Uploading(store, folder, manifest, check)
        held.enter_context(stored_from(folder, uploading))
        held.callback(uploading.stop)
        if not config.dry_run:
            uploading.leftovers()
        yield dataclasses.replace(config, out=str(folder), staging=None), Goal(store, folder, uploading)


def _nothing() -> None:
    """A dry run needs no lock, as it writes nothing."""


def announce(cache: Cache) -> None:
    """Stores the manifest and the files that are once per cache, before a shard of it is stored: what exists in the
    store can then be told from another cache's."""
    uploading = cache.uploading
    assert uploading is not None
    uploading.change()
    uploading.put_small(_small(cache))
    _note(cache.folder)


def _small(cache: Cache) -> list[str]:
    """Files that are once per cache; the manifest comes last but for what nothing needs."""
    state = cache.manifest.state
    constants = [constants_name(name) for name, column in state.columns.items() if column.constants]
    named = [ROWS, SAMPLES, *constants, MANIFEST, VIRTUAL]
    return [name for name in named if (cache.folder / name).exists()]


def _note(folder: Path) -> None:
    replace_file(folder / ANNOUNCED, hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest().encode())


def _staging(config: DumpConfig) -> Path:
    """A folder of this address alone: one that the user names may have other files in it, or serve other dumps."""
    assert config.out is not None
    above = cache_folder() / "staging" if config.staging is None else local_path(config.staging, "--staging")
    return above / hashlib.sha256(config.out.encode()).hexdigest()


def _begin(store: Store, folder: Path) -> Manifest | None:
    """Makes the folder agree with the store: shards that were made for the same cache stay, all else is the store's.

    Result: the store's manifest. Errors: ``CacheError`` for shards in the store without one that says whose they are.
    """
    content = store.read(MANIFEST, MAX_MANIFEST_BYTES)
    if content is None:
        if any(name.startswith("view-") for name in store.files()):
            raise CacheError(f"{store.where} has shards and no {MANIFEST}: remove them or use another --out")
        _empty(folder)
        return None
    manifest, here = Manifest.of(content, f"{store.where}/{MANIFEST}"), Local(folder)
    ours = here.read(MANIFEST, MAX_MANIFEST_BYTES)
    announced = here.read(ANNOUNCED, 100)
    if ours is not None and announced == hashlib.sha256(content).hexdigest().encode():
        return manifest  # nobody else has changed it since, and what is here may be newer
    _keep_shards_of(folder, ours, manifest)
    constants = [constants_name(name) for name, column in manifest.state.columns.items() if column.constants]
    sizes = store.files()
    for name in (ROWS, SAMPLES, *constants, VIRTUAL):
        if name in sizes:
            (folder / name).unlink(missing_ok=True)
            part = here.temporary(name)
            fetched(store, name, sizes[name], None, part)
            here.take(name, part)
    replace_file(folder / MANIFEST, content)
    _note(folder)
    return manifest


def _keep_shards_of(folder: Path, ours: bytes | None, manifest: Manifest) -> None:
    """Of the shards that wait here leaves those that are the store's too: of the same cache, and of columns that lie
    there in the same form. ``ours``: the manifest that they were made for."""
    made = None
    with contextlib.suppress(CacheError):
        made = None if ours is None else Manifest.of(ours, folder / MANIFEST)
    if made is None or made.cache_id != manifest.cache_id:
        _empty(folder)
        return
    records = {name: record.sha256() for name, record in manifest.state.columns.items()}
    same = {name for name, record in made.state.columns.items() if records.get(name) == record.sha256()}
    for path in folder.glob("view-*/*.h5"):
        if path.name.rpartition("-")[0] not in same:
            path.unlink()


def _empty(folder: Path) -> None:
    """Removes what softcache itself has left in this folder, and nothing else."""
    for path in [*folder.iterdir(), *folder.glob("view-*/*")]:
        name = path.relative_to(folder).as_posix()
        own = is_cache_file(name) or is_lock(name) or is_temporary(path.name) or name in (KNOWN, ANNOUNCED)
        if own and not path.is_dir():
            path.unlink()
    for path in folder.glob("view-*"):
        with contextlib.suppress(OSError):  # something else is in it, or it is none
            path.rmdir()
