"""Take views and columns out of a cache: ``softcache trim``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softcache.atomic import remove_dead_temporaries
from softcache.cache.locks import writing
from softcache.cache.manifest import Manifest
from softcache.cache.reader import Cache
from softcache.cache.schema import VIRTUAL, State, hint_column, is_hint, layer_of
from softcache.cache.surplus import Surplus, find_surplus, remove_empty_views, remove_surplus, surplus_constants
from softcache.cache.writer import update_state
from softcache.config.folders import pick_cache
from softcache.dumping.finish import finish
from softcache.errors import UsageError


@dataclass(frozen=True)
class Trimmed:
    """``views`` and ``columns`` that are left; ``files`` that were removed, or would be in a dry run, and their
    ``bytes``."""

    folder: Path
    views: int
    columns: list[str]
    files: list[str]
    bytes: int

    def to_json(self) -> dict[str, Any]:
        """One object for scripts."""
        return {**dataclasses.asdict(self), "folder": str(self.folder)}


def trim(
    cache: str | Path | None = None,
    *,
    views: int | None = None,
    drop_hints: Sequence[str] = (),
    drop_outputs: Sequence[str] = (),
    dry_run: bool = False,
    codec: str | None = None,
) -> Trimmed:
    """Keeps the first ``views`` views and drops the hints of the layers ``drop_hints`` and the outputs
    ``drop_outputs``; what is left stays as it is.

    The manifest is changed first, so the cache is valid at every moment: files that it doesn't ask for belong to
    nothing. Where a trim is killed, the same trim removes the rest, and a dump that adds a view takes the shards that
    are still there. ``codec``: as ``Cache`` takes it. ``dry_run``: finds out what would be removed, and changes
    nothing.

    Errors: ``UsageError`` for views or columns that the cache doesn't have, and where no column would be left,
    ``LockedError`` where a dump or a repair is at work, ``CacheError`` where the folder is no cache or a view's folder
    is a link.
    """
    folder = pick_cache(None if cache is None else str(cache))
    drop = [*map(hint_column, drop_hints), *drop_outputs]
    if views is None and not drop:
        raise UsageError(
            "say what to take away: --views N keeps the first N views, --drop-hint LAYER drops a hint, --drop-output "
            "NAME an output"
        )
    if dry_run:
        return _planned(folder, views, drop)[0]
    Cache(folder, codec=codec).check_codecs()  # refuses what is no cache, before a lock file is made
    with writing(folder):
        remove_dead_temporaries(folder)
        finish(folder, codec)  # what a trim that was killed had left to do, should there be no more to take away
        trimmed, surplus = _planned(folder, views, drop)
        # First, as it shows zeros where a shard is gone; it is written again at the end.
        (folder / VIRTUAL).unlink(missing_ok=True)
        update_state(folder, lambda state: _without(state, views, drop))
        remove_surplus(folder, surplus)
        for path in surplus_constants(folder, Manifest.load(folder).state.columns):
            path.unlink(missing_ok=True)
        remove_empty_views(folder, trimmed.views)
        finish(folder, codec)
    return trimmed


def _planned(folder: Path, views: int | None, drop: Sequence[str]) -> tuple[Trimmed, list[Surplus]]:
    manifest = Cache(folder).manifest
    held = manifest.state.views
    if views is not None and views < 1:
        raise UsageError(f"--views must be at least 1, is {views}")
    if views is not None and views > held:
        raise UsageError(f"--views {views}: {folder} has {held} views, and trim only takes away; softcache dump adds")
    state = _without(manifest.state, views, drop)
    if not state.columns:
        raise UsageError(f"nothing would be left of {folder}: remove the folder, or keep one of {_all(manifest)}")
    surplus = find_surplus(folder, state.views, state.columns)
    for name in drop:  # a trim that was killed has dropped it from the manifest already
        if name not in manifest.state.columns and name not in {file.column for file in surplus}:
            what = f"hint {layer_of(name)!r}" if is_hint(name) else f"output {name!r}"
            raise UsageError(f"{folder} has no {what}: it has {_all(manifest)}")
    constants = surplus_constants(folder, state.columns)
    files = [file.path for file in surplus] + [path.name for path in constants]
    size = sum(file.bytes for file in surplus) + sum(path.lstat().st_size for path in constants)
    columns = Manifest(manifest.identity, state).columns
    return Trimmed(folder, state.views, columns, files, size), surplus


def _all(manifest: Manifest) -> str:
    return ", ".join(manifest.columns)


def _without(state: State, views: int | None, drop: Sequence[str]) -> State:
    kept = {name: record for name, record in state.columns.items() if name not in drop}
    return dataclasses.replace(state, views=min(state.views, views or state.views), columns=kept)
