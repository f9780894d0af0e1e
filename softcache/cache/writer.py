"""Making and extending a cache. What exists is what is done: there is no journal, only shards that are there."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from softcache.atomic import check_no_link, commit, make_folder_within
from softcache.cache.agreement.identity import refuse_other
from softcache.cache.agreement.recorded import Recorded
from softcache.cache.attributes import file_attributes, rows_attributes
from softcache.cache.column import DIGEST, OFFSET
from softcache.cache.hdf5 import read_structure
from softcache.cache.locks import changing
from softcache.cache.manifest import Manifest
from softcache.cache.reader import Cache
from softcache.cache.schema import (
    MANIFEST,
    ROWS,
    SAMPLES,
    ColumnRecord,
    Identity,
    State,
    labels_sha256,
    length_array,
    sample_arrays,
    shard_name,
)
from softcache.cache.shard import Attributes, ShardWriter, opened, write_temporary
from softcache.cache.surplus import find_surplus, remove_surplus
from softcache.cache.uploading import uploading_of
from softcache.errors import CacheError, IntegrityError
from softcache.inputs import InputField, number_bytes
from softcache.ragged import Int64, offsets_of

CHUNK_BYTES = 2**26  # of kept pixels that are made and written at once
MAX_NOTES = 50  # on later changes of machine or libraries


@dataclass(frozen=True)
class Block:
    """Rows that are computed together in one view, and which shards of which columns are missing there."""

    view: int
    first: int
    rows: int
    missing: tuple[tuple[str, int], ...]

    @property
    def columns(self) -> list[str]:
        return sorted({column for column, _ in self.missing})


@dataclass(frozen=True)
class KeptSamples:
    """What ``samples.h5`` is to hold: ``rows`` (K,) int64, and a function from some of these rows to their inputs in
    view 0, which is asked for a few at a time: name → (n, …), or a list of n arrays where rows have lengths of their
    own. ``inputs``: dtype and shape of each; ``lengths``: (N,) int64 of all rows, of those that have."""

    rows: np.ndarray
    inputs: Mapping[str, InputField]
    made: Callable[[np.ndarray], Mapping[str, np.ndarray | list[np.ndarray]]]
    lengths: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def together(self) -> dict[str, int]:
        """How long the rows are together, of inputs whose rows have lengths of their own."""
        return {name: int(lengths[self.rows].sum()) for name, lengths in self.lengths.items()}


def create_or_extend(
    folder: Path,
    identity: Identity,
    *,
    views: int,
    columns: dict[str, ColumnRecord],
    made: dict[str, Any],
    class_names: Sequence[str],
    labels: np.ndarray,
    names: list[str] | None,
    samples: KeptSamples,
    codec: str | None = None,
) -> Cache:
    """The cache in ``folder``, made if it isn't there and asked to hold at least these views, columns and samples.

    ``codec``: as ``Cache`` takes it. Several processes may call it at once: one makes the manifest, the others find it.

    Whatever takes its time (rows and samples are written, shards that are there are looked at) is done before the
    manifest is locked.

    Errors: ``CacheError`` that names the differing fields where the folder holds a cache of another identity, other
    labels, or a column of that name that is something else.
    """
    rows: dict[str, np.ndarray] = {"label": labels.astype(labels.dtype.newbyteorder("<"))}
    if names is not None:
        rows["name"] = np.array([os.fsencode(name) for name in names])
    rows |= {length_array(name): lengths.astype("<i8") for name, lengths in samples.lengths.items()}
    count, where = len(samples.rows), _where(folder)
    folder.mkdir(parents=True, exist_ok=True)
    new = not (folder / MANIFEST).exists()
    if new:
        _refuse_foreign_shards(folder, identity, columns)
    kept = 0 if new else Manifest.load(folder).state.samples
    needed = [ROWS] if new or not (folder / ROWS).exists() else []
    if count and (count > kept or not (folder / SAMPLES).exists()):  # a published cache may keep none
        needed.append(SAMPLES)
    with _written_beside(folder, identity, needed, rows, samples) as parts, changing(folder):
        if (folder / MANIFEST).exists():
            manifest = Manifest.load(folder)
            refuse_other(manifest.identity, identity, where)
            if (manifest.state.class_names, manifest.state.labels) != (list(class_names), labels_sha256(labels)):
                raise CacheError(f"{where} was made from other labels or classes: restore them or use another --out")
            state = _extended(manifest.state, views, columns, made, where)
            if count > state.samples:
                # Samples are missing while the manifest and they would differ, so that nobody takes them for damaged.
                (folder / SAMPLES).unlink(missing_ok=True)
                state = dataclasses.replace(state, samples=count, samples_lengths=samples.together)
            added = set(state.columns) - set(manifest.state.columns)
            _remove_misfits(folder, Manifest(identity, state), added, codec, samples.lengths)
            if state != manifest.state:
                Manifest(identity, state).save(folder)
            for name, part in parts.items():
                if not (folder / name).exists() and (name == ROWS or state.samples == count):
                    commit(part, folder / name)
        elif new:
            name_bytes = rows["name"].dtype.itemsize if "name" in rows else 0
            state = State(
                views, count, samples.together, list(class_names), labels_sha256(labels), name_bytes,
                dict(sorted(columns.items())), made=made,
            )  # fmt: skip
            for name, part in parts.items():
                commit(part, folder / name)  # over those of a start that was killed, maybe of another cache
            # The manifest comes last: a folder without one holds nothing that could be taken for a cache.
            Manifest(identity, state).save(folder)
        else:
            raise CacheError(f"{folder}/{MANIFEST} was taken away or repaired meanwhile: run the same command again")
    return Cache(folder, codec=codec)


@contextlib.contextmanager
def _written_beside(
    folder: Path, identity: Identity, needed: Sequence[str], rows: dict[str, np.ndarray], samples: KeptSamples
) -> Iterator[dict[str, Path]]:
    """Files that are once per cache, under temporary names; those that haven't been committed then go."""
    cache_id = identity.cache_id()
    parts: dict[str, Path] = {}
    try:
        for name in needed:
            if name == ROWS:
                attributes = rows_attributes(cache_id, labels_sha256(rows["label"]))
                parts[name] = write_temporary(folder / name, attributes, rows)
            else:
                attributes = file_attributes(cache_id, SAMPLES.removesuffix(".h5"))
                parts[name] = _write_samples(folder / name, attributes, samples)
        yield parts
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def _write_samples(path: Path, attributes: Attributes, samples: KeptSamples) -> Path:
    writer = ShardWriter(path, attributes, sample_arrays(samples.inputs, len(samples.rows), samples.together))
    longest = sum(
        math.prod(field.tail) * number_bytes(field.dtype) * (int(samples.lengths[name].max()) if field.ragged else 1)
        for name, field in samples.inputs.items()
    )
    step, at = max(1, CHUNK_BYTES // max(1, longest)), dict.fromkeys(samples.inputs, 0)
    try:
        for first in range(0, len(samples.rows), step):
            some = samples.rows[first : first + step]
            writer.write(first, {"index": some})
            for name, made in samples.made(some).items():
                values = np.concatenate(made) if isinstance(made, list) else made
                writer.write(at[name], {name: values})
                at[name] += len(values)
    except BaseException:
        writer.abort()
        raise
    return writer.finish()


def _remove_misfits(
    folder: Path, manifest: Manifest, added: set[str], codec: str | None, lengths: Mapping[str, np.ndarray]
) -> None:
    """Of columns that are added to a manifest, removes shards that are there and don't fit: a ``softcache trim`` that
    was killed may have left them, of another shape or codec. Those that fit are done already. ``lengths``: of rows, as
    the data has them, because ``rows.h5`` may be missing."""
    if not added:
        return
    cache, misfits = Cache(folder, codec=codec), []
    cache.manifest = manifest
    cache.known_lengths.update(lengths)
    for file in find_surplus(folder, 0, ()):
        if file.column in added:
            try:
                with cache.shard(file.view, file.column, file.number):
                    pass  # it fits
            except IntegrityError:
                misfits.append(file)
    remove_surplus(folder, misfits)


def _where(folder: Path) -> str:
    """How messages call the cache that is made in a folder: its address where it is stored from there."""
    uploading = uploading_of(folder)
    return str(folder) if uploading is None else uploading.where


def _extended(state: State, views: int, columns: dict[str, ColumnRecord], made: dict[str, Any], where: str) -> State:
    """A state with these views and columns too, and a note of it where libraries or machine are others by now."""
    wanted = dict(state.columns)
    for name, column in columns.items():
        there = wanted.setdefault(name, column)
        if there.sha256() != column.sha256():
            raise CacheError(
                f"{where} holds {name} as {there.kind} {there.shape} in {there.codec}, asked for as {column.kind} "
                f"{column.shape} in {column.codec}: match its codec or use another --out"
            )
    later = state.made.get("later", [])
    last = {**state.made, **(later[-1] if later else {})}
    changed = {k: v for k, v in made.items() if last.get(k) != v and k not in ("date", "command")}
    if changed:
        note = {**changed, "command": made.get("command"), "date": made.get("date")}
        state = dataclasses.replace(state, made={**state.made, "later": [*later, note][-MAX_NOTES:]})
    return dataclasses.replace(state, views=max(views, state.views), columns=dict(sorted(wanted.items())))


def _refuse_foreign_shards(folder: Path, identity: Identity, columns: dict[str, ColumnRecord]) -> None:
    """What exists counts as done, so a folder that has lost its manifest may only hold this very cache's shards, and of
    these columns only such as are kept in the same way."""
    wanted, meanings = identity.cache_id(), {name: record.sha256() for name, record in columns.items()}
    for path in sorted(folder.glob("view-*/[!.]*.h5")):
        name = path.relative_to(folder)
        try:
            with opened(path) as (fd, size):
                found = read_structure(fd, size).nodes[""].attributes
        except (IntegrityError, OSError) as error:
            why = str(error).removeprefix(f"{path} ")
            raise CacheError(f"{folder} has no {MANIFEST}, and {name} {why}: remove it or use another --out") from None
        if found.get("cache_id") != wanted:
            raise CacheError(
                f"{folder} has no {MANIFEST}, but shards of another cache ({name}): remove them or use another --out"
            )
        column = str(found.get("column"))
        if column in meanings and found.get("column_sha256") != meanings[column]:
            raise CacheError(
                f"{folder} has no {MANIFEST}, but shards of {column} in another codec, shape or size ({name}): remove "
                "them, ask for them as they are, or use another --out"
            )


def update_state(folder: Path, change: Callable[[State], State]) -> None:
    """Reads, changes and writes the manifest's state, one process at a time."""
    with changing(folder):
        manifest = Manifest.load(folder)
        state = change(manifest.state)
        if state != manifest.state:
            Manifest(manifest.identity, state).save(folder)


def plan(cache: Cache, views: int, columns: list[str], part: tuple[int, int] = (1, 1)) -> list[Block]:
    """What is missing, as blocks in the order in which they are computed.

    ``part``: (k, n) takes every n-th block beginning with the k-th, so that n processes share the work. Errors:
    ``SoftcacheError`` where the folder of a view in which something is missing is a link.
    """
    size = cache.manifest.identity.grid.block_rows
    missing: dict[tuple[int, int], list[tuple[str, int]]] = {}
    for view, column, number in cache.missing(columns, views):
        first, _ = cache.shard_range(column, number)
        missing.setdefault((view, first // size), []).append((column, number))
    blocks = []
    for (view, number), shards in sorted(missing.items(), key=lambda item: (item[0][1], item[0][0])):
        first = number * size
        rows = min(size, cache.rows - first)
        if (number * views + view) % part[1] == part[0] - 1:
            blocks.append(Block(view, first, rows, tuple(shards)))
    for view in {block.view for block in blocks}:  # now, and not after hours of other views
        check_no_link(_view_folder(cache, view))
    return blocks


def _view_folder(cache: Cache, view: int) -> Path:
    return (cache.folder / shard_name(view, "", 0)).parent


class BlockWriter:
    """Takes a block's rows in order, column by column, and commits each shard when its last row is there.

    Columns whose shards are there already are not written again: they must agree with what is given, which
    ``recorded`` finds out, one for all blocks of a dump.
    """

    def __init__(self, cache: Cache, block: Block, recorded: Recorded):
        self._cache = cache
        self._block = block
        missing = set(block.columns)
        self._there = [column for column in cache.manifest.columns if column not in missing]
        self._recorded = recorded
        # Of each column the shard that is being written, and where in it the places of its rows begin.
        self._open: dict[str, tuple[int, ShardWriter, Int64 | None]] = {}
        make_folder_within(_view_folder(cache, block.view))

    def write(
        self, first: int, columns: dict[str, dict[str, np.ndarray]], said: dict[str, torch.Tensor] | None = None
    ) -> None:
        """``columns``: column → array name → rows ``first ...`` of it; of a ragged column what its codec keeps has one
        row a place, and ``offset`` says where each row's begin. ``said``: by column, the values of these rows before
        their codec, on the CPU, of those whose shards are there and that are to agree with them.

        Errors: ``PixelsError`` and ``CacheError`` where a column that is there says something else.
        """
        self._recorded.check(self._block.view, first, columns, self._there, said or {})
        if first + len(next(iter(columns.values()))[DIGEST]) == self._block.first + self._block.rows:
            self._recorded.release(self._block.view)
        for column, arrays in columns.items():
            count, at, offset = len(arrays[DIGEST]), 0, arrays.get(OFFSET)
            while at < count:
                number = (first + at) // self._cache.manifest.shard_rows(column)
                start, rows = self._cache.shard_range(column, number)
                take = min(count - at, start + rows - (first + at))
                if (column, number) in self._block.missing:
                    ends = (at, at + take) if offset is None else tuple(offset[[at, at + take]].tolist())
                    piece = {name: values[slice(*ends)] for name, values in arrays.items() if name != OFFSET}
                    piece[DIGEST] = arrays[DIGEST][at : at + take]
                    self._write_shard(column, number, first + at - start, take, rows, piece)
                at += take

    def abort(self) -> None:
        """Drops the shards that are not finished."""
        for _, writer, _ in self._open.values():
            writer.abort()
        self._open.clear()

    def _write_shard(
        self, column: str, number: int, at: int, take: int, rows: int, piece: dict[str, np.ndarray]
    ) -> None:
        if column not in self._open:
            path = self._cache.shard_path(self._block.view, column, number)
            attributes = self._cache.shard_attributes(self._block.view, column, number)
            chunking = self._cache.layout(column).chunking
            writer = ShardWriter(path, attributes, self._cache.shard_arrays(column, number), chunking)
            self._open[column] = number, writer, None
            if self._cache.layout(column).ragged:
                begins = offsets_of(self._cache.places(column, *self._cache.shard_range(column, number)))
                self._open[column] = number, writer, begins
                writer.write(0, {OFFSET: begins})
        held, writer, offset = self._open[column]
        assert held == number, (column, held, number)
        if offset is None:
            writer.write(at, piece)
        else:
            writer.write(at, {DIGEST: piece.pop(DIGEST)})
            writer.write(int(offset[at]), piece)
        if at + take == rows:
            del self._open[column]
            writer.commit()
            if self._cache.uploading is not None:
                self._cache.uploading.committed(writer.path)
