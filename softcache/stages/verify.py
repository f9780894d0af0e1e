"""Is every byte of a cache what was written, and is all of it there: ``softcache verify``."""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softcache.atomic import is_temporary, remove_dead_temporaries, sync_folder
from softcache.cache.checksum import check_file
from softcache.cache.locks import is_lock, writing
from softcache.cache.reader import Cache
from softcache.cache.schema import MANIFEST, ROWS, SAMPLES, VIRTUAL, parse, read_manifest, render
from softcache.cache.shard import Arrays, Attributes
from softcache.config.folders import pick_cache
from softcache.console import Bar, bar
from softcache.errors import CacheError, IntegrityError

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from softcache.cache.agreement.teacher import Rerun

SET_ASIDE = "cache.json.damaged"
MAX_THREADS = 8


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
    makes a cache worse. ``removed``: what ``repair`` took away."""

    folder: Path
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
        found = dataclasses.asdict(self) | {"folder": str(self.folder), "ok": self.ok}
        return found | {"teacher": None if self.teacher is None else self.teacher.to_json()}


@dataclass(frozen=True)
class _File:
    path: Path
    attributes: Attributes
    arrays: Arrays
    view: int | None = None
    first_row: int | None = None
    rows: int | None = None


def verify(
    cache: str | Path | None = None,
    *,
    repair: bool = False,
    teacher: str | None = None,
    sample: int = 256,
    seed: int = 0,
    threads: int | None = None,
    codec: str | None = None,
    **options: Any,
) -> Verified:
    """Reads every byte of the manifest, ``rows.h5``, ``samples.h5`` and all shards, and compares checksums.

    ``repair`` removes what is damaged, so that the same ``dump`` computes just that again. ``teacher``: a spec; it
    is run on a random ``sample`` of keys and compared (``options``: those of ``rerun``). ``codec``: as ``Cache`` takes
    it. Errors: ``CacheError``
    where the folder is no cache, ``LockedError`` where ``repair`` finds it being written.
    """
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
    elif teacher is not None:
        found.teacher = _ask(
            Cache(folder, verify_reads=True, codec=codec), teacher, sample=sample, seed=seed, **options
        )
    return found


def _ask(
    cache: Cache,
    teacher: str,
    *,
    sample: int,
    seed: int,
    teacher_weights: str | None = None,
    normalize: str | None = None,
    dataset: str | None = None,
    data_dir: str | None = None,
    augment: str | None = None,
    device: str = "auto",
) -> Rerun:
    """Runs ``teacher`` in the arithmetic of the dump.

    Errors: ``CacheError`` where the dataset or the number of classes isn't that of the cache.
    """
    # Only a check with a teacher needs all that runs one.
    import torch

    from softcache.cache.agreement.data import check_dataset
    from softcache.cache.agreement.teacher import compare
    from softcache.config.given import recorded_dataset, recorded_recipe, remember_cache
    from softcache.config.teachers import find_teacher
    from softcache.device import DTYPES, pick_device
    from softcache.dumping.forward import Forward
    from softcache.models._weights import fingerprint
    from softcache.views._open import open_viewed

    identity = cache.manifest.identity
    numerics, recipe = identity.teacher.numerics, identity.recipe
    if numerics.dtype not in DTYPES:
        raise CacheError(f"{cache.folder} was made in {numerics.dtype}, which this softcache doesn't know")
    viewed = open_viewed(
        recorded_dataset(cache, dataset),
        identity.dataset.split,
        data_dir=data_dir,
        augment=recorded_recipe(cache, augment),
        view_seed=recipe["seed"],
        size=recipe["size"],
    )
    check_dataset(cache, viewed)
    size = identity.teacher.preprocess.get("size")
    network = find_teacher(teacher, viewed.samples, weights=teacher_weights, normalize=normalize, size=size)
    if network.classes != identity.classes:
        raise CacheError(f"{teacher} has {network.classes} classes, the cache {identity.classes}")
    same_weights = fingerprint(network.model.state_dict()) == identity.teacher.weights
    where = pick_device(device)
    network = network.to(where, DTYPES[numerics.dtype]).eval()
    if numerics.memory_format == "channels_last":
        network.to(memory_format=torch.channels_last)
    forward = Forward(network, [], where, amp=numerics.amp)
    found = compare(
        cache, viewed, lambda pixels: forward(pixels)[0], where, sample=sample, seed=seed, same_weights=same_weights
    )
    if not found.other_pixels:
        remember_cache(cache, dataset=dataset, augment=augment)
    return found


def _examine(folder: Path, threads: int | None, codec: str | None) -> Verified:
    began = time.perf_counter()
    found = Verified(folder)
    try:
        cache = _check_manifest(folder, codec)
    except IntegrityError as error:
        what = str(error).removeprefix(f"{folder / MANIFEST}").lstrip(": ")
        found.damaged.append(Damage(MANIFEST, None, None, None, None, what))
        found.parts = [name for name in _names(folder) if is_temporary(os.path.basename(name))]
        return found
    files = list(_files(cache))
    known = {str(file.path.relative_to(folder)) for file in files} | {MANIFEST, VIRTUAL}
    for name in _names(folder):
        if is_temporary(os.path.basename(name)):
            found.parts.append(name)
        elif name not in known and not is_lock(name):
            found.foreign.append(name)
    there = []
    for file in files:
        if os.path.lexists(file.path):
            there.append(file)
        else:
            found.missing.append(str(file.path.relative_to(folder)))
    sizes = {file.path: os.path.getsize(file.path) for file in there if file.path.is_file()}
    workers = threads or min(MAX_THREADS, os.cpu_count() or 1)
    with bar("verify", sum(sizes.values()), "bytes") as shown:
        for file, flaws in zip(there, _check_all(there, workers, shown), strict=True):
            name = str(file.path.relative_to(folder))
            found.damaged += [Damage(name, f.array, file.view, file.first_row, file.rows, f.what) for f in flaws]
    found.files, found.bytes = len(there) + 1, sum(sizes.values()) + os.path.getsize(folder / MANIFEST)
    found.seconds = time.perf_counter() - began
    return found


def _check_manifest(folder: Path, codec: str | None) -> Cache:
    """The cache, if its manifest is byte for byte what softcache writes."""
    cache, text = Cache(folder, codec=codec), read_manifest(folder)
    if render(parse(text, folder / MANIFEST)) != text:
        raise IntegrityError(f"{folder / MANIFEST} is not as softcache writes it, though it says the same")
    return cache


def _files(cache: Cache) -> Iterator[_File]:
    yield _File(cache.folder / ROWS, cache.file_attributes("rows"), cache.rows_arrays())
    yield _File(cache.folder / SAMPLES, cache.file_attributes("samples"), cache.samples_arrays())
    for view in range(cache.views):
        for column in cache.manifest.columns:
            for number in range(cache.manifest.shards(column)):
                first, rows = cache.shard_range(column, number)
                attributes = cache.shard_attributes(view, column, number)
                path = cache.shard_path(view, column, number)
                yield _File(path, attributes, cache.arrays(column, rows), view, first, rows)


def _check_all(files: list[_File], workers: int, shown: Bar) -> Iterator[Any]:
    lock = threading.Lock()

    def advance(count: int) -> None:
        with lock:
            shown.advance(count)

    with ThreadPoolExecutor(workers, thread_name_prefix="softcache-verify") as pool:
        try:
            yield from pool.map(lambda file: check_file(file.path, file.attributes, file.arrays, advance), files)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _names(folder: Path) -> list[str]:
    """All files below a folder, relative to it; linked folders are not entered."""
    return sorted(
        os.path.relpath(os.path.join(root, name), folder) for root, _, names in os.walk(folder) for name in names
    )


def _repair(found: Verified) -> None:
    """Removes damaged files, each at once, so that a repair that is killed can be begun again. A link goes, never
    what it points to. The manifest is set aside, not removed: it may still tell a person how the cache was made."""
    folder = found.folder
    damaged = list(dict.fromkeys(damage.file for damage in found.damaged))
    if damaged and (folder / VIRTUAL).exists():
        # First, as it shows zeros where a shard is gone; dump writes it again.
        (folder / VIRTUAL).unlink()
        found.removed.append(VIRTUAL)
    for name in damaged:
        if name == MANIFEST:
            os.replace(folder / MANIFEST, folder / SET_ASIDE)
        else:
            (folder / name).unlink(missing_ok=True)
        sync_folder((folder / name).parent)
        found.removed.append(name)
    for leftover in remove_dead_temporaries(folder):
        name = str(leftover.relative_to(folder))
        found.removed.append(name)
        found.parts = [part for part in found.parts if part != name]
        log.info(f"removed {name}: its writer is gone")


def _last(damage: Damage) -> int:
    assert damage.first_row is not None
    assert damage.rows is not None
    return damage.first_row + damage.rows - 1
