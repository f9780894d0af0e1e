"""Reading a cache: what it is, what it has, and its shards; ``column_reader.py`` has the rows of a column."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import numpy as np

from softcache import registry
from softcache.cache.attributes import file_attributes, rows_attributes, shard_attributes
from softcache.cache.backing import Backing
from softcache.cache.checksum import is_intact
from softcache.cache.chunk_frames import Chunking
from softcache.cache.column import OFFSET, Column
from softcache.cache.column_reader import ColumnReader
from softcache.cache.constants import when_needed
from softcache.cache.extents import Arrays
from softcache.cache.kept_samples import Samples, no_samples, read_samples
from softcache.cache.label_form import label_form
from softcache.cache.manifest import Manifest
from softcache.cache.named_codec import opened_codec
from softcache.cache.pinned import Pinned
from softcache.cache.ragged_rows import read_lengths
from softcache.cache.remote import Remote
from softcache.cache.schema import ROWS, SAMPLES, length_array, sample_arrays, shard_name, share_of
from softcache.cache.shard import Attributes, Opened, open_shard, read_array
from softcache.cache.shares import places_in
from softcache.cache.uploading import uploading_of
from softcache.codecs._open import is_own, option_of
from softcache.errors import CacheError, IntegrityError, UsageError
from softcache.ragged import Int64, offsets_of, places_of
from softcache.remembered import given_before


class Cache:
    """A cache's folder, opened for reading. Nothing is mapped or checked before it is needed.

    With ``column = cache.column("logits")``, ``column.decode(column.gather(view, rows))`` are the logits of rows in a
    view, and ``column.padded(column.gather(view, rows))`` where rows have lengths of their own.

    ``verify_reads``: compare a shard's checksums before it is used. ``codec``: for a cache whose codec is code of a
    user's own, that code, which is never run because a cache names it: ``Cache(folder, codec="my.py:Int7")``; by
    default what the user gave for this cache before.

    Errors: ``CacheError`` where the folder is no cache or of another format, ``IntegrityError`` where it is damaged.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        verify_reads: bool = False,
        codec: str | None = None,
        remote: Remote | None = None,
        pinned: Pinned | None = None,
    ):
        self.folder = Path(folder)
        self.verify_reads = verify_reads
        self.remote, self.pinned = remote, pinned
        self.uploading = uploading_of(self.folder)
        self.backing: Backing | None = remote or self.uploading
        self.manifest = Manifest.load(self.folder)
        self._given = codec
        self._columns: dict[str, Column] = {}
        self.known_lengths: dict[str, np.ndarray] = {}  # what ``lengths`` has read, or a writer knows
        for name in self.manifest.columns:
            if not is_own(self.manifest.state.columns[name].codec) or self._named() is not None:
                self.layout(name)

    def layout(self, column: str) -> Column:
        """How a column lies on disk.

        Errors: ``CacheError`` where the cache doesn't have it, with the command that adds it, where its codec isn't
        available, and where that is code that the user hasn't named.
        """
        if column not in self._columns:
            record = self.manifest.state.columns.get(column)
            if record is None:
                raise CacheError(self.manifest.lacking(self.where, column))
            found = Column.of(column, record, opened_codec(record.codec, self._named, self.where))
            try:
                with registry.guarded(option_of(record.codec), f"codec {option_of(record.codec)!r}"):
                    found.arrays(1)
                    _ = found.chunking
                    found = when_needed(found, record, self.folder, self.manifest.cache_id)
            except UsageError as error:  # what the manifest says is no usage
                raise CacheError(f"{self.where}: codec not available: {error}") from None
            self._columns[column] = found
        return self._columns[column]

    def check_codecs(self) -> None:
        """Errors: ``CacheError`` as ``layout``, of any column."""
        for name in self.manifest.columns:
            self.layout(name)

    def _named(self) -> str | None:
        """The code that the user named as a codec of this cache, now or before."""
        return self._given or given_before(self.folder, "codec", self.manifest.cache_id)

    @property
    def where(self) -> str:
        """How messages call it: its folder, or the address that it is read from."""
        return str(self.folder) if self.backing is None else self.backing.where

    @property
    def place(self) -> str:
        """The same, of a folder by its whole path."""
        return str(self.folder.resolve()) if self.backing is None else self.backing.where

    @property
    def rows(self) -> int:
        return self.manifest.identity.dataset.rows

    @property
    def views(self) -> int:
        return self.manifest.state.views

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """One of the kinds of ``datasets._labels``: of classes (N,) int32, -1 where a row has none."""
        with self.rows_file() as file:
            return read_array(file, "label")

    @functools.cached_property
    def names(self) -> list[str] | None:
        """The N files that rows were decoded from, relative to the dataset's folder; None where there are no files."""
        if not self.manifest.state.name_bytes:
            return None
        with self.rows_file() as file:
            return [os.fsdecode(name) for name in read_array(file, "name").tolist()]

    @functools.cached_property
    def samples(self) -> Samples:
        """Rows (K,) int64 and their inputs in view 0, as the teacher saw them: name → (K, …), pixels (K, H, W, C)
        uint8, or a list of K arrays where rows have lengths of their own.

        They may be many, so they are mapped, after their checksum was compared.
        """
        if not self.manifest.state.samples:  # of a published cache that keeps none
            return no_samples(self.manifest.identity.dataset.inputs)
        with self._opened(self.folder / SAMPLES, self.file_attributes("samples"), self.samples_arrays()) as file:
            return read_samples(file, self.manifest.identity.dataset.inputs, self.rows, self.lengths)

    def lengths(self, name: str) -> np.ndarray:
        """(N,) int64: how long each row of an input is whose rows have lengths of their own."""
        if name not in self.known_lengths:
            with self.rows_file() as file:
                self.known_lengths[name] = read_lengths(file, name)
        return self.known_lengths[name]

    def places(self, column: str, first: int = 0, rows: int | None = None) -> Int64:
        """(rows,) int64: how many places rows ``first ...`` have in a ragged column, by default all of them."""
        record, last = self.manifest.state.columns[column], min(self.rows, first + (rows or self.rows))
        if record.lengths is None:
            return places_in(share_of(column) or 0, self.rows, first, last)
        return places_of(self.lengths(record.lengths)[first:last], record.stride)

    @property
    def input_names(self) -> str:
        """For messages: what the teacher saw of each key, ``pixels``, or other names."""
        return ", ".join(self.manifest.identity.dataset.inputs)

    def rows_arrays(self) -> Arrays:
        """What ``rows.h5`` holds."""
        held: Arrays = {"label": label_form(self.folder / ROWS, self.rows, len(self.manifest.state.class_names))}
        width = self.manifest.state.name_bytes
        ragged = [name for name, given in self.manifest.identity.dataset.inputs.items() if given.ragged]
        lengths: Arrays = {length_array(name): ("<i8", (self.rows,)) for name in ragged}
        return held | ({"name": (f"S{width}", (self.rows,))} if width else {}) | lengths

    def samples_arrays(self) -> Arrays:
        """What ``samples.h5`` holds."""
        state = self.manifest.state
        return sample_arrays(self.manifest.identity.dataset.inputs, state.samples, state.samples_lengths)

    def file_attributes(self, column: str) -> Attributes:
        """Root attributes of ``rows.h5`` and ``samples.h5``."""
        cache_id = self.manifest.cache_id
        if column == "rows":
            return rows_attributes(cache_id, self.manifest.state.labels)
        return file_attributes(cache_id, column)

    def shard_attributes(self, view: int, column: str, number: int) -> Attributes:
        first, rows = self.shard_range(column, number)
        sha256 = self.manifest.state.columns[column].sha256()
        return shard_attributes(self.manifest.cache_id, column, sha256, view=view, first_row=first, rows=rows)

    def shard_range(self, column: str, number: int) -> tuple[int, int]:
        """First row and number of rows of a shard."""
        size = self.manifest.shard_rows(column)
        return number * size, min(size, self.rows - number * size)

    def shard_path(self, view: int, column: str, number: int) -> Path:
        return self.folder / shard_name(view, column, number)

    def arrays(self, column: str, rows: int) -> Arrays:
        """What so many rows of a column are: dataset name → dtype and shape. Of a ragged column without its places."""
        return self.layout(column).arrays(rows)

    def shard_arrays(self, column: str, number: int) -> Arrays:
        """What a shard of a column holds. Errors: ``IntegrityError`` where that follows from lengths of rows and
        ``rows.h5`` is missing or damaged."""
        first, rows = self.shard_range(column, number)
        layout = self.layout(column)
        return layout.arrays(rows, int(self.places(column, first, rows).sum()) if layout.ragged else 0)

    def names_in(self, view: int) -> set[str]:
        """Of the files in a view's folder, where the cache lies."""
        if self.backing is not None:
            return {name.partition("/")[2] for name in self.backing.in_view(view)}
        try:
            return set(os.listdir(self.folder / f"view-{view:04d}"))
        except FileNotFoundError:
            return set()

    def missing(self, columns: list[str], views: int) -> list[tuple[int, str, int]]:
        """(view, column, shard number) of every shard that isn't there, by the folders' listings alone."""
        absent = []
        for view in range(views):
            there = self.names_in(view)
            for column in columns:
                for number in range(self.manifest.shards(column)):
                    if os.path.basename(shard_name(view, column, number)) not in there:
                        absent.append((view, column, number))
        return absent

    def complete_views(self, column: str | None = None) -> list[int]:
        """Views of which every shard of the column is there; None: of all columns."""
        columns = self.manifest.columns if column is None else [column]
        absent = {view for view, _, _ in self.missing(columns, self.views)}
        return [view for view in range(self.views) if view not in absent]

    @contextlib.contextmanager
    def shard(self, view: int, column: str, number: int) -> Iterator[Opened]:
        """A shard, checked and open; with ``verify_reads`` against its checksums too.

        Errors: ``IntegrityError`` where it is missing or isn't what the manifest says.
        """
        path, arrays = self.shard_path(view, column, number), self.shard_arrays(column, number)
        attributes, chunking = self.shard_attributes(view, column, number), self.layout(column).chunking
        with self.present([shard_name(view, column, number)]), self._opened(path, attributes, arrays, chunking) as file:
            if OFFSET in arrays:
                wanted = offsets_of(self.places(column, *self.shard_range(column, number)))
                by = "the rows of its share make it" if share_of(column) else f"the rows' lengths in {ROWS} add up to"
                if not np.array_equal(read_array(file, OFFSET), wanted):
                    raise IntegrityError(f"{path}: {OFFSET} is not what {by}")
            for name in file.names if self.verify_reads else ():
                if not is_intact(file, name):
                    raise IntegrityError(
                        f"{path}: {name} doesn't match its checksum: run softcache verify {self.folder}"
                    )
            yield file

    def rows_file(self) -> contextlib.AbstractContextManager[Opened]:
        """``rows.h5``, checked and open. Errors: ``IntegrityError`` where it isn't what the manifest says."""
        return self._opened(self.folder / ROWS, self.file_attributes("rows"), self.rows_arrays())

    @contextlib.contextmanager
    def present(self, names: Collection[str]) -> Iterator[None]:
        """Within it these files are in the folder, where they come from a store."""
        if self.backing is None:
            yield
            return
        self.backing.need(names)
        try:
            yield
        finally:
            self.backing.done(names)

    @contextlib.contextmanager
    def _opened(
        self, path: Path, attributes: Attributes, arrays: Arrays, chunking: Mapping[str, Chunking] | None = None
    ) -> Iterator[Opened]:
        with open_shard(path, attributes, arrays, chunking) as file:
            if self.pinned is not None:
                self.pinned.prove(file.fd, path)
            yield file

    def column(self, column: str) -> ColumnReader:
        """Rows of one column. Errors: ``CacheError`` as ``layout``."""
        return ColumnReader(self, column)
