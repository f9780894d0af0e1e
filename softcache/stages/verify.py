"""Is every byte of a cache what was written, and is all of it there: ``softcache verify``."""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softcache.addresses import is_address
from softcache.atomic import is_temporary, remove_dead_temporaries, sync_folder
from softcache.cache.checksum import Flaw, check_file
from softcache.cache.column import OFFSET
from softcache.cache.constants import constants_name, constants_of
from softcache.cache.listing import LISTING
from softcache.cache.locks import is_lock, writing
from softcache.cache.manifest import parse, read_manifest, render
from softcache.cache.reader import Cache
from softcache.cache.schema import MANIFEST, ROWS, SAMPLES, VIRTUAL, length_array, shard_name
from softcache.cache.shard import Arrays, Attributes
from softcache.cache.shard import opened as opened_file
from softcache.config.folders import pick_cache
from softcache.config.opening import LOCAL_SIZE, Opening
from softcache.config.options import refuse_seed
from softcache.console import Bar, bar
from softcache.errors import CacheError, IntegrityError, UsageError
from softcache.stages._asking import ask
from softcache.stages._card import CARD

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from softcache.cache.agreement.teacher import Rerun

SET_ASIDE = "cache.json.damaged"
MAX_THREADS = 8
AHEAD = 4  # files that wait for each thread


@dataclass(frozen=True)
class Damage:
    """A file of a cache that is not what was written: as a whole, or one ``array`` of it; whose rows it holds."""

    file: str
    array: str | None
    view: int | None
    first_row: int | None
    rows: int | None
    what: str

    def __str__(self) -> str:
        place = f" {self.array}" if self.array else ""
        keys = "" if self.rows is None else f" (view {self.view}, rows {self.first_row} to {_last(self)})"
        return f"{self.file}{place}{keys} {self.what}"


@dataclass
class Verified:
    """What was found. ``foreign`` files belong to nothing, ``parts`` are left of writers or being written; neither
    makes a cache worse. ``removed``: what ``repair`` took away. ``folder``: of a store's cache the one that its files
    were checked in; ``where``: how messages call the cache, its address or folder."""

    folder: Path
    where: str
    bytes: int = 0
    files: int = 0
    seconds: float = 0.0
    damaged: list[Damage] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    teacher: Rerun | None = None

    @property
    def ok(self) -> bool:
        """Complete, undamaged, and the teacher agrees if it was asked."""
        return not self.damaged and not self.missing and (self.teacher is None or self.teacher.ok)

    def to_json(self) -> dict[str, Any]:
        found = dataclasses.asdict(self) | {"folder": self.where, "ok": self.ok}
        del found["where"]
        return found | {"teacher": None if self.teacher is None else self.teacher.to_json()}


@dataclass(frozen=True)
class _File:
    """A file of a cache that is there: ``rows`` or ``samples``, a ``column``'s constants, or a shard of it."""

    name: str
    column: str
    shard: tuple[int, int] | None = None  # view and number


def verify(
    cache: str | Path | None = None,
    *,
    repair: bool = False,
    teacher: str | None = None,
    sample: int = 256,
    seed: int = 0,
    threads: int | None = None,
    codec: str | None = None,
    expect: Sequence[str] = (),
    local_cache: str | None = None,
    local_size: str = LOCAL_SIZE,
    **options: Any,
) -> Verified:
    """Reads every byte of the manifest, ``rows.h5``, ``samples.h5`` and all shards, and compares checksums.

    ``repair`` removes what is damaged, so that the same ``dump`` computes just that again. ``teacher``: a spec; it
    is run on a random ``sample`` of keys and compared (``options``: those of ``rerun``). ``codec``: as ``Cache`` takes
    it. ``expect``, ``local_cache``, ``local_size``: as in ``TrainConfig``; with a pin every file's sha256 is compared
    too. Errors: ``CacheError``
    where the folder is no cache, ``LockedError`` where ``repair`` finds it being written.
    """
    refuse_seed(seed)
    afar = cache is not None and is_address(cache)
    if afar or expect:
        if repair:
            raise UsageError("--repair changes a cache's own folder, and isn't for stores or with --expect")
        where = Opening(tuple(expect), local_cache, local_size)
        opened = where.open(None if cache is None else str(cache), codec=codec)
        found = _examine(opened.folder, threads, codec, opened)
        if teacher is not None and not (found.damaged or found.missing):
            found.teacher = ask(opened, teacher, sample=sample, seed=seed, **options)
        return found
    folder = pick_cache(None if cache is None else str(cache))
    if not folder.is_dir():
        raise CacheError(f"{folder} is no cache: there is no such folder")
    if repair:
        with writing(folder):
            found = _examine(folder, threads, codec)
            _repair(found)
    else:
        found = _examine(folder, threads, codec)
    if teacher is not None and found.damaged and not (repair and MANIFEST not in found.removed):
        log.info("the teacher is not asked, as the cache is damaged: repair it first")
    elif teacher is not None and ROWS in found.missing:
        log.info(f"the teacher is not asked, as {ROWS} is missing: run softcache dump again first")
    elif teacher is not None:
        found.teacher = ask(Cache(folder, verify_reads=True, codec=codec), teacher, sample=sample, seed=seed, **options)
    return found


def _examine(folder: Path, threads: int | None, codec: str | None, opened: Cache | None = None) -> Verified:
    """``opened``: the cache, where it comes from a store or is pinned."""
    began = time.perf_counter()
    found = Verified(folder, str(folder) if opened is None else opened.where)
    try:
        cache = _check_manifest(folder, opened or Cache(folder, codec=codec))
    except IntegrityError as error:
        what = str(error).removeprefix(f"{folder / MANIFEST}").lstrip(": ")
        found.damaged.append(Damage(MANIFEST, None, None, None, None, what))
        found.parts = [name for name in _names(folder) if is_temporary(os.path.basename(name))]
        return found
    there = list(_present(cache, found.missing))
    known = {file.name for file in there} | {MANIFEST, VIRTUAL, LISTING, CARD}
    for name in _names(folder) if cache.remote is None else ():
        if is_temporary(os.path.basename(name)):
            found.parts.append(name)
        elif name not in known and not is_lock(name):
            found.foreign.append(name)
    if cache.remote is not None:
        size = cache.remote.bytes_of([file.name for file in there])
    else:
        size = sum(os.path.getsize(folder / file.name) for file in there if (folder / file.name).is_file())
    workers = threads or min(MAX_THREADS, os.cpu_count() or 1)
    with bar("verify", size, "bytes") as shown:
        for file, flaws in _check_all(cache, _without_lengths(cache, there), workers, shown):
            view, number = file.shard or (None, None)
            first, rows = (None, None) if number is None else cache.shard_range(file.column, number)
            found.damaged += [Damage(file.name, f.array, view, first, rows, f.what) for f in flaws]
    found.files, found.bytes = len(there) + 1, size + os.path.getsize(folder / MANIFEST)
    found.seconds = time.perf_counter() - began
    return found


def _check_manifest(folder: Path, cache: Cache) -> Cache:
    """The cache, if its manifest is byte for byte what softcache writes."""
    text = read_manifest(folder)
    if render(parse(text, folder / MANIFEST)) != text:
        raise IntegrityError(f"{folder / MANIFEST} is not as softcache writes it, though it says the same")
    return cache


def _present(cache: Cache, missing: list[str]) -> Iterator[_File]:
    """The cache's files that are there; names of the others go to ``missing``."""
    for name in (ROWS, *([SAMPLES] if cache.manifest.state.samples else [])):
        if os.path.lexists(cache.folder / name):  # of a store's cache they are fetched first
            yield _File(name, name.removesuffix(".h5"))
        else:
            missing.append(name)
    for column in cache.manifest.columns:
        if cache.manifest.state.columns[column].constants is None:
            continue
        if os.path.lexists(cache.folder / constants_name(column)):
            yield _File(constants_name(column), column)
        else:
            missing.append(constants_name(column))
    absent = set(cache.missing(cache.manifest.columns, cache.views))
    for view in range(cache.views):
        for column in cache.manifest.columns:
            for number in range(cache.manifest.shards(column)):
                name = shard_name(view, column, number)
                if (view, column, number) in absent:
                    missing.append(name)
                else:
                    yield _File(name, column, (view, number))


def _check_all(cache: Cache, files: list[_File], workers: int, shown: Bar) -> Iterator[tuple[_File, list[Flaw]]]:
    """Each file with its flaws, in order. Whatever ends this early, a signal too, ends the threads within a block."""
    lock, stop = threading.Lock(), threading.Event()

    def advance(count: int) -> None:
        if stop.is_set():
            raise CancelledError
        with lock:
            shown.advance(count)

    def check(file: _File) -> list[Flaw]:
        with cache.present([file.name]):
            return present(file)

    def present(file: _File) -> list[Flaw]:
        if cache.pinned is not None and (flaw := _other_bytes(cache, file)):
            return flaw
        chunking = None if file.shard is None else cache.layout(file.column).chunking
        flaws = check_file(cache.folder / file.name, *_expected(cache, file), advance, chunking)
        if file.shard is not None and not flaws and cache.layout(file.column).ragged:
            flaws = _misfits(cache, file, file.shard)
        if file.name in (ROWS, SAMPLES) and not flaws and (cache.folder / ROWS).exists():
            flaws = _wrong_lengths(cache, file)
        if file.name == constants_name(file.column) and not flaws:
            flaws = _other_constants(cache, file)
        return flaws

    pool = ThreadPoolExecutor(workers, thread_name_prefix="softcache-verify")
    waiting: deque[tuple[_File, Future[list[Flaw]]]] = deque()
    try:
        for file in files:
            waiting.append((file, pool.submit(check, file)))
            if len(waiting) > AHEAD * workers:
                first, flaws = waiting.popleft()
                yield first, flaws.result()
        for file, flaws in waiting:
            yield file, flaws.result()
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _other_bytes(cache: Cache, file: _File) -> list[Flaw]:
    """Whether a file isn't what the pin stands for."""
    assert cache.pinned is not None
    path = cache.folder / file.name
    try:
        with opened_file(path) as (fd, _):
            cache.pinned.prove(fd, path)
    except IntegrityError as error:
        return [Flaw(None, str(error).removeprefix(f"{path} "))]
    return []


def _wrong_lengths(cache: Cache, file: _File) -> list[Flaw]:
    """What ``rows.h5`` says of lengths that no rows can have, or that don't fit the kept samples."""
    ragged = [name for name, given in cache.manifest.identity.dataset.inputs.items() if given.ragged]
    try:
        for name in ragged:
            cache.lengths(name)
    except IntegrityError as error:  # told of the file that says so, and not again of the samples
        return [Flaw(length_array(name), str(error))] if file.name == ROWS else []
    try:
        _ = cache.samples if ragged and file.name == SAMPLES else None
    except IntegrityError as error:
        return [Flaw(ragged[0], str(error))]
    return []


def _other_constants(cache: Cache, file: _File) -> list[Flaw]:
    """Whether constants, whose bytes are sound, are those that the manifest names."""
    try:
        _ = cache.layout(file.column).coder
    except IntegrityError as error:
        return [Flaw(None, str(error).removeprefix(f"{cache.folder / file.name} "))]
    return []


def _expected(cache: Cache, file: _File) -> tuple[Attributes, Arrays]:
    """What a file must hold."""
    if file.name == constants_name(file.column):
        record, layout = cache.manifest.state.columns[file.column], cache.layout(file.column)
        return constants_of(cache.folder, cache.manifest.cache_id, file.column, record)[1], layout.constant_arrays
    if file.shard is None:
        return cache.file_attributes(file.column), cache.rows_arrays() if file.name == ROWS else cache.samples_arrays()
    view, number = file.shard
    return cache.shard_attributes(view, file.column, number), cache.shard_arrays(file.column, number)


def _misfits(cache: Cache, file: _File, shard: tuple[int, int]) -> list[Flaw]:
    """Whether the offsets of a ragged shard, whose bytes are sound, are those of its rows."""
    try:
        with cache.shard(shard[0], file.column, shard[1]):
            return []
    except IntegrityError as error:
        return [Flaw(OFFSET, str(error).rpartition(f"{OFFSET} ")[2])]


def _without_lengths(cache: Cache, files: list[_File]) -> list[_File]:
    """All that can be checked: shards of ragged columns only where the lengths of their rows can be read."""
    ragged = {name for name, record in cache.manifest.state.columns.items() if record.lengths is not None}
    try:
        for name in ragged:
            cache.places(name, 0, 0)
    except IntegrityError:
        log.info(f"the shards of {', '.join(sorted(ragged))} can't be checked without a sound {ROWS}: repair it first")
        return [file for file in files if file.column not in ragged]
    return files


def _names(folder: Path) -> list[str]:
    """All files below a folder, relative to it; linked folders are not entered."""
    return sorted(
        os.path.relpath(os.path.join(root, name), folder) for root, _, names in os.walk(folder) for name in names
    )


def _repair(found: Verified) -> None:
    """Removes damaged files, each at once, so that a repair that is killed can be begun again. A link goes, never
    what it points to: where the folder of a view is a link, that link, and no file behind it. The manifest is set
    aside, not removed: it may still tell a person how the cache was made.

    Errors: ``CacheError`` that names the file that can't be removed.
    """
    folder = found.folder
    damaged = list(dict.fromkeys(_within(folder, damage.file) for damage in found.damaged))
    if damaged and (folder / VIRTUAL).exists():
        # First, as it shows zeros where a shard is gone; dump writes it again.
        damaged.insert(0, VIRTUAL)
    for name in damaged:
        try:
            if name == MANIFEST:
                os.replace(folder / MANIFEST, folder / SET_ASIDE)
            else:
                (folder / name).unlink(missing_ok=True)
            sync_folder((folder / name).parent)
        except OSError as error:
            raise CacheError(f"{folder / name} is damaged and can't be removed: {error.strerror}") from None
        found.removed.append(name)
    for leftover in remove_dead_temporaries(folder):
        name = str(leftover.relative_to(folder))
        found.removed.append(name)
        found.parts = [part for part in found.parts if part != name]
        log.info(f"removed {name}: its writer is gone")


def _within(folder: Path, name: str) -> str:
    """What is to be removed for a damaged file: itself, or the link to another folder that it was found through."""
    above = Path(name).parent
    return str(above) if (folder / above).is_symlink() and above != Path() else name


def _last(damage: Damage) -> int:
    assert damage.first_row is not None
    assert damage.rows is not None
    return damage.first_row + damage.rows - 1
