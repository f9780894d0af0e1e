"""A dump whose cache lies in an object store."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from softcache.atomic import replace_file
from softcache.cache.constants import constants_name
from softcache.cache.listing import LISTING, MAX_LISTING_BYTES, names_of
from softcache.cache.manifest import Manifest
from softcache.cache.reader import Cache
from softcache.cache.schema import MANIFEST, MAX_MANIFEST_BYTES, ROWS, SAMPLES, VIRTUAL
from softcache.cache.sending import fetched
from softcache.cache.uploading import Uploading, stored_from
from softcache.config.dump import DumpConfig
from softcache.config.folders import make_folder
from softcache.errors import CacheError, UsageError
from softcache.localfiles import cache_folder, local_path
from softcache.store.https import Https
from softcache.store.local import Local
from softcache.store.lock import StoreLock
from softcache.store.opened import open_store
from softcache.store.store import Store

ANNOUNCED = ".announced"  # the sha256 of the manifest that was last stored from here


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
        return listing.pin


@contextlib.contextmanager
def writing_to_store(config: DumpConfig) -> Iterator[tuple[DumpConfig, Goal]]:
    """The dump as one into a folder of this machine, whose shards are stored as they are made.

    Errors: ``UsageError`` for an address that can't be written to, ``LockedError`` where another process dumps there.
    """
    assert config.out is not None
    store = open_store(config.out, "--out")
    if isinstance(store, Https):
        raise UsageError(f"--out {store.where}: softcache writes nothing to https:// addresses, only to s3, gs, az, hf")
    folder = _staging(config)
    make_folder(folder)
    with StoreLock(store, f"{store.where} is being written") as lock:
        _begin(store, folder)
        uploading = Uploading(store, folder, lock.check)
        with stored_from(folder, uploading):
            try:
                uploading.leftovers()
                here = dataclasses.replace(config, out=str(folder), staging=None)
                yield here, Goal(store, folder, uploading)
            finally:
                uploading.stop()


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
    if config.staging is not None:
        return local_path(config.staging, "--staging")
    assert config.out is not None
    name = hashlib.sha256(config.out.encode()).hexdigest()[:16]
    return cache_folder() / "staging" / name


def _begin(store: Store, folder: Path) -> None:
    """Makes the folder agree with the store: shards that were made for the same cache stay, all else is the store's.

    Errors: ``CacheError`` for shards in the store without a manifest that says whose they are.
    """
    content = store.read(MANIFEST, MAX_MANIFEST_BYTES)
    if content is None:
        if any(name.startswith("view-") for name in store.files()):
            raise CacheError(f"{store.where} has shards and no {MANIFEST}: remove them or use another --out")
        _empty(folder)
        return
    manifest, here = Manifest.of(content, f"{store.where}/{MANIFEST}"), Local(folder)
    ours = here.read(MANIFEST, MAX_MANIFEST_BYTES)
    announced = here.read(ANNOUNCED, 100)
    if ours is not None and announced == hashlib.sha256(content).hexdigest().encode():
        return  # nobody else has changed it since, and what is here may be newer
    if ours is not None and _cache_id(ours) != manifest.cache_id:
        _empty(folder)
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


def _cache_id(content: bytes) -> str | None:
    with contextlib.suppress(CacheError):
        return Manifest.of(content, MANIFEST).cache_id
    return None


def _empty(folder: Path) -> None:
    """Removes what lies in a folder that softcache made for shards on their way."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
