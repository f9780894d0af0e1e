"""A cache as it is, from one place to another: ``softcache copy``."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from softcache.addresses import COPIED, is_address, refuse_unwritable, without_secret
from softcache.atomic import remove_dead_temporaries
from softcache.cache.listing import LISTING, MAX_LISTING_BYTES, Listed, Listing, check_expected, is_cache_file, names_of
from softcache.cache.locks import writing
from softcache.cache.manifest import Manifest
from softcache.cache.schema import MANIFEST, MAX_MANIFEST_BYTES, MAX_SHARD_BYTES, SAMPLES, VIRTUAL
from softcache.cache.sending import send
from softcache.cache.whereabouts import Described, described, refuse_loss
from softcache.config.folders import make_folder, pick_cache
from softcache.console import advising, bar, size
from softcache.errors import CacheError, IntegrityError, SoftcacheError, UsageError
from softcache.stages._card import CARD, card_of
from softcache.stages._private import check_include, without_private
from softcache.store.https import Https
from softcache.store.local import Local
from softcache.store.lock import StoreLock
from softcache.store.opened import open_store
from softcache.store.store import Store

log = logging.getLogger(__name__)

THREADS = 4
MAX_SHARD_FILE_BYTES = 2 * MAX_SHARD_BYTES  # beside its numbers it has digests, checksums and HDF5's own


@dataclass(frozen=True)
class Copied:
    """``files`` of the cache and their ``bytes``; ``sent``: how many of them the target didn't have. ``pin``: the
    number that stands for all of its bytes, which ``--expect`` takes."""

    source: str
    target: str
    files: int
    bytes: int
    sent: int
    sent_bytes: int
    seconds: float
    pin: str

    def to_json(self) -> dict[str, Any]:
        """One object for scripts."""
        return asdict(self)


def copy(
    source: str | Path,
    target: str | Path,
    *,
    expect: Sequence[str] = (),
    threads: int | None = None,
    card: bool | None = None,
    include: Sequence[str] = (),
    license: str | None = None,
) -> Copied:
    """Copies a cache as it is between folders and object stores, file by file, and lists its files in ``files.json``.

    What is there already, with the same size and sha256, isn't sent again, so a copy that was interrupted goes on.
    Every file is read back. The manifest comes last: without it nothing takes a half copy for a cache. ``expect``:
    pins, one of which the source must have. ``threads``: files at once. ``card``: whether the copy is to be published,
    by default on the hub alone: it then gets a ``README.md`` that says what it is, and leaves out what is private, but
    for what ``include`` names (``command``, ``paths``, ``names``, ``samples``). ``license``: the dataset's, for the
    card.

    Errors: ``CacheError`` where the source is no cache or the target has another one; ``IntegrityError`` where bytes
    aren't what they should be; ``StoreError`` where a store can't be reached; ``LockedError`` where the target is
    being written; ``UsageError`` where the target has another cache, or more of this one than the source.
    """
    began = time.monotonic()
    expect = check_expected(expect)
    origin, goal = _opened(source, target)
    whole = described(origin, expect, listed=isinstance(origin, Https))
    published = goal.where.startswith("hf://") if card is None else card
    check_include(include, published)
    with contextlib.ExitStack() as held:
        names = _names(origin, whole, listed_only=bool(expect))
        if published:
            origin, whole = held.enter_context(without_private(origin, whole, names, include))
            there = origin.files()
            names = {name: there[name] for name in names_of(whole.manifest, there)}
        held.enter_context(advising(lambda: f"what has arrived at {goal.where} stays: run the same command again"))
        check: Callable[[], None] = _nothing
        if isinstance(goal, Local):
            make_folder(goal.folder)
            held.enter_context(writing(goal.folder))
            remove_dead_temporaries(goal.folder)
        elif goal.exclusive:
            check = held.enter_context(StoreLock(goal, f"{goal.where} is being written")).check
        _refuse_too_large(origin, names)
        _clear(goal, whole, names)
        _refuse_too_small(goal, names)
        spool = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="softcache-copy-")))
        listing, sent = _send_all(origin, goal, whole, names, spool, threads or THREADS, check)
        _finish(goal, whole, listing, check)
        if published:
            goal.write(CARD, card_of(whole.manifest, listing, goal.where, license).encode())
    return Copied(
        origin.where, goal.where, len(listing.files), listing.size, len(sent), sum(sent),
        time.monotonic() - began, listing.pin,
    )  # fmt: skip


def _nothing() -> None:
    """A folder's lock can't be taken over from a process that lives."""


def _opened(source: str | Path, target: str | Path) -> tuple[Store, Store]:
    """Errors: ``UsageError`` for a target that can't be written to, or lies in the source or around it."""
    source, target = without_secret(source), without_secret(target)
    origin = open_store(source if is_address(source) else pick_cache(source, option="SOURCE"), "SOURCE")
    refuse_unwritable(target, "TARGET", COPIED)
    goal = open_store(target, "TARGET")
    one, other = (os.path.realpath(s.folder) if isinstance(s, Local) else s.where for s in (origin, goal))
    if one == other or f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/"):
        raise UsageError(f"{goal.where} and {origin.where} lie in one another: copy to another place")
    return origin, goal


def _names(origin: Store, whole: Described, *, listed_only: bool) -> dict[str, int]:
    """Files that are to be copied, with their sizes."""
    listed = {name: file.size for name, file in whole.listing.files.items()} if whole.listing is not None else {}
    there = listed if listed_only or isinstance(origin, Https) else origin.files()
    names = names_of(whole.manifest, there)
    missing = whole.manifest.all_shards() - sum(name.startswith("view-") for name in names)
    if missing:
        log.warning(
            f"{origin.where} is not complete: {missing:,} of {whole.manifest.all_shards():,} shards are missing"
        )
    return {name: there[name] for name in names}


def _clear(goal: Store, whole: Described, names: Collection[str]) -> None:
    """Takes the manifest away of an earlier state of the cache, which may lead to files that are about to change, and
    the files of that state that are none of this one, such as samples that aren't to be published.

    Errors: ``UsageError`` where the target has another cache, or more of this one, or files that may be anybody's.
    """
    there, files = goal.read(MANIFEST, MAX_MANIFEST_BYTES), goal.files()
    held = None
    with contextlib.suppress(CacheError):  # a damaged one is replaced
        held = Manifest.of(there, f"{goal.where}/{MANIFEST}") if there is not None else None
    if held is not None:
        refuse_loss(goal.where, held, files, whole.manifest, names)
    surplus = _surplus(whole.manifest, files, names)
    if surplus and held is None:
        raise UsageError(
            f"{goal.where} has {surplus[0]}, which is no file of this cache, and no {MANIFEST} that says whose it is: "
            "remove it, or copy to another place"
        )
    if there is None or (there == whole.content and not surplus):
        return
    if surplus and goal.where.startswith("hf://"):
        log.warning(
            f"{goal.where}: {', '.join(surplus[:3])}{', …' if len(surplus) > 3 else ''} will be removed, but the "
            "repository's history keeps earlier files: delete the repository first if nobody may read them"
        )
    goal.delete(LISTING)
    for name in surplus:  # before the manifest: a copy that is interrupted here then finds them again
        goal.delete(name)
    goal.delete(MANIFEST)


def _surplus(manifest: Manifest, files: Collection[str], names: Collection[str]) -> list[str]:
    """Of the target's files those that only a cache can have, and that this one doesn't have."""
    own = {MANIFEST, *names, *names_of(manifest, files)}
    own -= {VIRTUAL, *([] if manifest.state.samples else [SAMPLES])} - set(names)
    return sorted(name for name in files if is_cache_file(name) and name not in own)


def _refuse_too_large(origin: Store, names: dict[str, int]) -> None:
    """Errors: ``IntegrityError`` for a size that a store says of a shard, and that none can have."""
    if not isinstance(origin, Local):
        for name, count in names.items():
            if name.startswith("view-") and count > MAX_SHARD_FILE_BYTES:
                raise IntegrityError(
                    f"{origin.where}/{name} would have {size(count)}, and no shard has more than "
                    f"{size(MAX_SHARD_FILE_BYTES)}: it isn't as softcache makes it, and nothing of it was fetched"
                )


def _refuse_too_small(goal: Store, names: dict[str, int]) -> None:
    if isinstance(goal, Local):
        there = goal.files()
        needed = sum(count for name, count in names.items() if there.get(name) != count)
        free = shutil.disk_usage(goal.folder).free
        if needed > free:
            raise SoftcacheError(f"the copy needs {size(needed)} more at {goal.where}, {size(free)} are free")


def _send_all(
    origin: Store,
    goal: Store,
    whole: Described,
    names: dict[str, int],
    spool: Path,
    threads: int,
    check: Callable[[], None],
) -> tuple[Listing, list[int]]:
    """The listing of what the target then has, and the sizes of what was sent."""
    known = whole.listing.files if whole.listing is not None else {}
    done: dict[str, Listed] = {MANIFEST: Listed(len(whole.content), hashlib.sha256(whole.content).hexdigest())}
    sent: list[int] = []
    stop, lock = threading.Event(), threading.Lock()
    with bar("copy", sum(names.values()), "bytes") as shown, _pool(threads, stop) as pool:

        def one(name: str) -> None:
            if stop.is_set():
                return
            check()
            file, new = send(origin, goal, name, names[name], known[name].sha256 if name in known else None, spool)
            with lock:
                done[name] = file
                sent.extend([file.size] if new else [])
                shown.advance(file.size)

        for finished in [pool.submit(one, name) for name in names]:
            finished.result()
    return Listing(whole.manifest.cache_id, done), sent


@contextlib.contextmanager
def _pool(threads: int, stop: threading.Event) -> Iterator[ThreadPoolExecutor]:
    """Threads that begin no other file once one has failed, or the user has stopped the command."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="softcache-copy")
    try:
        yield pool
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _finish(goal: Store, whole: Described, listing: Listing, check: Callable[[], None]) -> None:
    """The listing and then the manifest, which makes a cache of what is there."""
    check()
    content = listing.render()
    if goal.read(LISTING, MAX_LISTING_BYTES) != content:
        goal.write(LISTING, content)
    check()
    if goal.read(MANIFEST, MAX_MANIFEST_BYTES) != whole.content:
        goal.write(MANIFEST, whole.content)
    for name, written in ((LISTING, content), (MANIFEST, whole.content)):
        if goal.read(name, len(written)) != written:
            raise SoftcacheError(f"{goal.where}/{name} is another than was written: another process is at work there")
