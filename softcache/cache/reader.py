"""Reading a cache: what it is, what it has, and rows of its columns at memory speed."""

from __future__ import annotations

import functools
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from softcache import registry
from softcache.cache.mapping import map_rows
from softcache.cache.schema import LOGITS, ROWS, SAMPLES, Manifest, shard_name
from softcache.cache.shard import Attributes, Extent, open_shard, read_extent
from softcache.errors import CacheError, IntegrityError


class Cache:
    """A cache's folder, opened for reading. Nothing is mapped or checked before it is needed.

    Errors: ``CacheError`` where the folder is no cache or of another format, ``IntegrityError`` where it is damaged.
    """

    def __init__(self, folder: str | Path, *, verify_reads: bool = False):
        self.folder = Path(folder)
        self.verify_reads = verify_reads
        self.manifest = Manifest.load(self.folder)
        self.codec = registry.create("codecs", self.manifest.identity.codec)

    @property
    def rows(self) -> int:
        return self.manifest.identity.dataset.rows

    @property
    def views(self) -> int:
        return self.manifest.state.views

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """(N,) int32, -1 where a row has no label."""
        arrays: dict[str, tuple[str, tuple[int, ...]]] = {"label": ("<i4", (self.rows,))}
        if self.manifest.state.name_bytes:
            arrays["name"] = (f"S{self.manifest.state.name_bytes}", (self.rows,))
        path = self.folder / ROWS
        return read_extent(path, open_shard(path, self.file_attributes("rows"), arrays)["label"])

    @functools.cached_property
    def samples(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows (K,) int64 and their pixels (K, H, W, C) uint8 in view 0, as the teacher saw them."""
        path = self.folder / SAMPLES
        shape = self.manifest.state.samples_shape
        arrays: dict[str, tuple[str, tuple[int, ...]]] = {
            "index": ("<i8", (shape[0],)),
            "pixels": ("|u1", tuple(shape)),
        }
        extents = open_shard(path, self.file_attributes("samples"), arrays)
        return read_extent(path, extents["index"]), read_extent(path, extents["pixels"])

    def file_attributes(self, column: str) -> Attributes:
        return {"format": "softcache", "version": 1, "cache_id": self.manifest.cache_id, "column": column}

    def shard_attributes(self, view: int, column: str, number: int) -> Attributes:
        first, rows = self.shard_range(column, number)
        return {**self.file_attributes(column), "view": view, "first_row": first, "rows": rows}

    def shard_range(self, column: str, number: int) -> tuple[int, int]:
        """First row and number of rows of a shard."""
        size = self.manifest.shard_rows(column)
        return number * size, min(size, self.rows - number * size)

    def shard_path(self, view: int, column: str, number: int) -> Path:
        return self.folder / shard_name(view, column, number)

    def arrays(self, column: str, rows: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        """What a shard of a column holds: dataset name → dtype and shape."""
        held: dict[str, tuple[str, tuple[int, ...]]] = {"digest": ("<u4", (rows,))}
        if column == LOGITS:
            coded = self.codec.arrays(self.manifest.identity.classes)
            return held | {f"logits/{name}": (dtype, (rows, *tail)) for name, (dtype, tail) in coded.items()}
        hint = self.manifest.hint(column)
        return held | {"hint/values": (np.dtype(hint.dtype).newbyteorder("<").str, (rows, *hint.shape))}

    def missing(self, columns: list[str], views: int) -> list[tuple[int, str, int]]:
        """(view, column, shard number) of every shard that isn't there, by the folders' listings alone."""
        absent = []
        for view in range(views):
            try:
                there = set(os.listdir(self.folder / f"view-{view:04d}"))
            except FileNotFoundError:
                there = set()
            for column in columns:
                for number in range(self.manifest.shards(column)):
                    if os.path.basename(shard_name(view, column, number)) not in there:
                        absent.append((view, column, number))
        return absent

    def complete_views(self, column: str = LOGITS) -> list[int]:
        """Views of which every shard of the column is there."""
        absent = {view for view, _, _ in self.missing([column], self.views)}
        return [view for view in range(self.views) if view not in absent]

    def extents(self, view: int, column: str, number: int) -> dict[str, Extent]:
        """A shard, checked against the manifest; with ``verify_reads`` against its checksums too."""
        path = self.shard_path(view, column, number)
        _, rows = self.shard_range(column, number)
        extents = open_shard(path, self.shard_attributes(view, column, number), self.arrays(column, rows))
        if self.verify_reads:
            for name, extent in extents.items():
                if checksum(path, extent) != extent.crc32:
                    raise IntegrityError(
                        f"{path}: {name} doesn't match its checksum: run softcache verify {self.folder}"
                    )
        return extents

    def column(self, column: str) -> ColumnReader:
        """Rows of one column.

        Errors: ``CacheError`` where the cache doesn't have it, with the command that adds it.
        """
        if column not in self.manifest.columns:
            layer, known = column.removeprefix("hint."), ", ".join(self.manifest.state.hints) or "none"
            raise CacheError(
                f"{self.folder} has no hint {layer!r} (it has {known}): "
                f"add it with: softcache dump … --out {self.folder} --hint {layer}"
            )
        return ColumnReader(self, column)

    def describe(self) -> dict[str, Any]:
        """What ``softcache info --json`` prints."""
        identity, state = self.manifest.identity, self.manifest.state
        absent = self.missing(self.manifest.columns, self.views)
        size = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        shards = self.views * sum(map(self.manifest.shards, self.manifest.columns))
        return {
            "path": str(self.folder),
            "cache_id": self.manifest.cache_id,
            "teacher": identity.teacher.spec,
            "teacher_top1": state.teacher_top1,
            "dataset": identity.dataset.spec,
            "split": identity.dataset.split,
            "recipe": identity.recipe["spec"],
            "size": identity.recipe["size"],
            "view_seed": identity.recipe["seed"],
            "views": self.views,
            "rows": self.rows,
            "keys": self.rows * self.views,
            "classes": identity.classes,
            "codec": identity.codec,
            "codec_error": state.codec_error,
            "hints": {layer: {"shape": h.shape, "dtype": h.dtype} for layer, h in state.hints.items()},
            "bytes": size,
            "complete": not absent,
            "missing_shards": len(absent),
            "shards": shards,
            "made": state.made,
        }


class ColumnReader:
    """Rows of one column by number, gathered from memory maps that are made per view when first needed."""

    def __init__(self, cache: Cache, column: str):
        self.cache = cache
        self.name = column
        self._shard_rows = cache.manifest.shard_rows(column)
        self._maps: dict[int, dict[str, list[np.ndarray]]] = {}

    def gather(self, view: int, rows: np.ndarray) -> dict[str, np.ndarray]:
        """``rows`` (B,) int64 → each array's rows, (B, ...), in that order; ``digest`` among them."""
        assert len(rows) == 0 or 0 <= rows.min() <= rows.max() < self.cache.rows, "rows out of range"
        return {name: self._take(parts, rows) for name, parts in self.map(view).items()}

    def map(self, view: int) -> dict[str, list[np.ndarray]]:
        """The view's arrays: each one whole, or a list of one a shard where they can't be joined."""
        if view not in self._maps:
            cache, shards = self.cache, range(self.cache.manifest.shards(self.name))
            found = [cache.extents(view, self.name, number) for number in shards]
            paths = [cache.shard_path(view, self.name, number) for number in shards]
            self._maps[view] = {
                name: map_rows([(path, extents[name]) for path, extents in zip(paths, found, strict=True)])
                for name in found[0]
            }
        return self._maps[view]

    def release(self, view: int) -> None:
        """Forgets a view's maps, so that memory and address space don't grow with the number of views."""
        self._maps.pop(view, None)

    def _take(self, parts: list[np.ndarray], rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), *parts[0].shape[1:]), parts[0].dtype)
        if len(parts) == 1:
            return np.take(parts[0], rows, axis=0, out=out, mode="clip")
        shard = rows // self._shard_rows
        for number in np.unique(shard):
            at = np.nonzero(shard == number)[0]
            out[at] = parts[number][rows[at] - number * self._shard_rows]
        return out


def checksum(path: Path, extent: Extent, block: int = 8 * 2**20) -> int:
    """crc32 of an array's bytes on disk, read in blocks."""
    crc, left = 0, extent.nbytes
    with open(path, "rb") as file:
        file.seek(extent.offset)
        while left:
            data = file.read(min(block, left))
            if not data:
                raise IntegrityError(f"{path} has been truncated")
            crc, left = zlib.crc32(data, crc), left - len(data)
    return crc


def find_caches(root: str | Path = "caches") -> list[Path]:
    """Folders below ``root`` that have a manifest."""
    return sorted(path.parent for path in Path(root).glob("*/cache.json"))
