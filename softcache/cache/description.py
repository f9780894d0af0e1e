"""What a cache is, as ``softcache info --json`` prints it."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

from softcache.cache.listing import LISTING, MAX_LISTING_BYTES, Listing, names_of
from softcache.cache.manifest import read_manifest
from softcache.cache.reader import Cache
from softcache.cache.schema import MANIFEST
from softcache.errors import CacheError, IntegrityError
from softcache.store.local import Local


def describe(cache: Cache) -> dict[str, Any]:
    """``pin`` is None where no listing says what the files are now; ``softcache copy`` makes one."""
    identity, state = cache.manifest.identity, cache.manifest.state
    absent = cache.missing(cache.manifest.columns, cache.views)
    return {
        "path": cache.where,
        "cache_id": cache.manifest.cache_id,
        "pin": pin_of(cache),
        "teacher": identity.teacher.spec,
        "teacher_top1": state.teacher_top1,
        "dataset": identity.dataset.spec,
        "split": identity.dataset.split,
        "recipe": identity.recipe["spec"],
        "inputs": {name: dataclasses.asdict(given) for name, given in identity.dataset.inputs.items()},
        "size": identity.recipe.get("size"),
        "view_seed": identity.recipe["seed"],
        "views": cache.views,
        "rows": cache.rows,
        "keys": cache.rows * cache.views,
        "classes": len(state.class_names),
        "columns": {name: dataclasses.asdict(state.columns[name]) for name in cache.manifest.columns},
        "bytes": _bytes(cache),
        "complete": not absent,
        "missing_shards": len(absent),
        "incomplete_views": sorted({view for view, _, _ in absent}),
        "shards": cache.views * sum(map(cache.manifest.shards, cache.manifest.columns)),
        "made": state.made,
    }


def pin_of(cache: Cache) -> str | None:
    """The number that stands for every byte of a cache, where its listing is that of these very files."""
    if cache.remote is not None:
        return cache.remote.listing.pin
    with contextlib.suppress(CacheError):  # a listing that is damaged lists nothing
        written = Local(cache.folder).read(LISTING, MAX_LISTING_BYTES)
        if written is None:
            return None
        listing = Listing.parse(written, LISTING)
        with contextlib.suppress(IntegrityError):  # the cache has changed since
            listing.check(MANIFEST, read_manifest(cache.folder), str(cache.folder))
            sizes = {name: size for name, size in Local(cache.folder).files().items() if name in listing.files}
            if sizes == {name: file.size for name, file in listing.files.items()}:
                return listing.pin
    return None


def _bytes(cache: Cache) -> int:
    if cache.remote is not None:
        return cache.remote.listing.size
    if cache.uploading is not None:  # of shards that are here too, the store's are counted
        names = [MANIFEST, *names_of(cache.manifest, (path.name for path in cache.folder.iterdir()))]
        return cache.uploading.size + sum((cache.folder / name).stat().st_size for name in names)
    size = 0
    for path in cache.folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a writer's temporary file may be gone by now
            size += path.stat().st_size if path.is_file() else 0
    return size
