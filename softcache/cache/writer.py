"""Making and extending a cache. What exists is what is done: there is no journal, only shards that are there."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from softcache.cache.reader import Cache
from softcache.cache.schema import (
    LOGITS,
    MANIFEST,
    ROWS,
    SAMPLES,
    HintColumn,
    Identity,
    Manifest,
    State,
    hint_column,
)
from softcache.cache.shard import Attributes, ShardWriter, write_arrays
from softcache.errors import CacheError


@dataclass(frozen=True)
class Block:
    """The rows of one shard of logits in one view, and which shards of which columns are missing there."""

    view: int
    first: int
    rows: int
    missing: tuple[tuple[str, int], ...]

    @property
    def columns(self) -> list[str]:
        return sorted({column for column, _ in self.missing})


def create_or_extend(
    folder: Path,
    identity: Identity,
    *,
    views: int,
    hints: dict[str, HintColumn],
    made: dict[str, Any],
    labels: np.ndarray,
    names: list[str] | None,
    samples: tuple[np.ndarray, np.ndarray],
) -> Cache:
    """The cache in ``folder``, made if it isn't there and asked to hold at least these views and hints.

    Errors: ``CacheError`` that names the differing fields where the folder holds a cache of another identity.
    """
    if (folder / MANIFEST).exists():
        manifest = Manifest.load(folder)
        refuse_other(manifest.identity, identity, folder)
        wanted = dict(manifest.state.hints)
        for layer, hint in hints.items():
            if layer in wanted and wanted[layer] != hint:
                raise CacheError(f"{folder} holds hint {layer} as {wanted[layer]}, asked for as {hint}")
            wanted[layer] = hint
        if views > manifest.state.views or wanted != manifest.state.hints:
            manifest.state = dataclasses.replace(
                manifest.state, views=max(views, manifest.state.views), hints=dict(sorted(wanted.items()))
            )
            manifest.save(folder)
        return Cache(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, np.ndarray] = {"label": labels.astype("<i4")}
    if names is not None:
        rows["name"] = np.array([os.fsencode(name) for name in names])
    index, pixels = samples
    state = State(
        views=views,
        samples_shape=list(pixels.shape),
        name_bytes=rows["name"].dtype.itemsize if "name" in rows else 0,
        hints=dict(sorted(hints.items())),
        made=made,
    )
    manifest = Manifest(identity, state)
    common: Attributes = {"format": "softcache", "version": 1, "cache_id": manifest.cache_id}
    write_arrays(folder / ROWS, {**common, "column": "rows"}, rows)
    write_arrays(folder / SAMPLES, {**common, "column": "samples"}, {"index": index.astype("<i8"), "pixels": pixels})
    # The manifest comes last: a folder without one holds nothing that could be taken for a cache.
    manifest.save(folder)
    return Cache(folder)


def update_state(folder: Path, **changes: Any) -> None:
    """Replaces fields of the manifest's state."""
    manifest = Manifest.load(folder)
    manifest.state = dataclasses.replace(manifest.state, **changes)
    manifest.save(folder)


def refuse_other(found: Identity, wanted: Identity, folder: Path) -> None:
    """Nothing where both are the same.

    Errors: ``CacheError`` with every differing field, what the folder has and what was asked for.
    """
    ours, theirs = _flat(dataclasses.asdict(wanted)), _flat(dataclasses.asdict(found))
    keys = [key for key in sorted(ours | theirs) if ours.get(key) != theirs.get(key)]
    if keys:
        shown = "; ".join(f"{key}: {_short(theirs.get(key))} there, {_short(ours.get(key))} now" for key in keys)
        raise CacheError(f"{folder} is a cache of something else ({shown}): match it or use another --out")


def plan(cache: Cache, views: int, columns: list[str], part: tuple[int, int] = (1, 1)) -> list[Block]:
    """What is missing, as blocks in the order in which they are computed.

    ``part``: (k, n) takes every n-th block beginning with the k-th, so that n processes share the work.
    """
    size = cache.manifest.identity.shard_rows
    missing: dict[tuple[int, int], list[tuple[str, int]]] = {}
    for view, column, number in cache.missing(columns, views):
        first, _ = cache.shard_range(column, number)
        missing.setdefault((view, first // size), []).append((column, number))
    blocks = []
    for (view, number), shards in sorted(missing.items(), key=lambda item: (item[0][1], item[0][0])):
        first, rows = cache.shard_range(LOGITS, number)
        if (number * views + view) % part[1] == part[0] - 1:
            blocks.append(Block(view, first, rows, tuple(shards)))
    return blocks


class BlockWriter:
    """Takes a block's rows in order, column by column, and commits each shard when its last row is there."""

    def __init__(self, cache: Cache, block: Block):
        self._cache = cache
        self._block = block
        self._open: dict[str, tuple[int, ShardWriter]] = {}
        self.committed: list[Path] = []
        cache.shard_path(block.view, LOGITS, 0).parent.mkdir(exist_ok=True)

    def write(self, first: int, columns: dict[str, dict[str, np.ndarray]]) -> None:
        """``columns``: column → array name → rows ``first ...`` of it."""
        for column, arrays in columns.items():
            count, at = len(next(iter(arrays.values()))), 0
            while at < count:
                number = (first + at) // self._cache.manifest.shard_rows(column)
                start, rows = self._cache.shard_range(column, number)
                take = min(count - at, start + rows - (first + at))
                if (column, number) in self._block.missing:
                    piece = {name: values[at : at + take] for name, values in arrays.items()}
                    self._write_shard(column, number, first + at - start, take, rows, piece)
                at += take

    def abort(self) -> None:
        """Drops the shards that are not finished."""
        for _, writer in self._open.values():
            writer.abort()
        self._open.clear()

    def _write_shard(
        self, column: str, number: int, at: int, take: int, rows: int, piece: dict[str, np.ndarray]
    ) -> None:
        if column not in self._open:
            path = self._cache.shard_path(self._block.view, column, number)
            attributes = self._cache.shard_attributes(self._block.view, column, number)
            self._open[column] = (number, ShardWriter(path, attributes, self._cache.arrays(column, rows)))
        held, writer = self._open[column]
        assert held == number, (column, held, number)
        writer.write(at, piece)
        if at + take == rows:
            del self._open[column]
            writer.commit()
            self.committed.append(writer.path)


def hint_columns(hints: dict[str, HintColumn]) -> list[str]:
    return [hint_column(layer) for layer in hints]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for key, item in value.items() for k, v in _flat(item, f"{prefix}.{key}" if prefix else key).items()}


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"
