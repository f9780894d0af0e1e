"""One HDF5 file of a cache: made so that its arrays can be written and memory-mapped by position.

h5py makes the structure, ``hdf5.py`` reads and checks it; the numbers themselves never pass through either. Every
dataset has a ``crc32`` and is contiguous, allocated when it is created, never filled, aligned to a page; or it is
compressed, in chunks that lie one behind the other.
"""

from __future__ import annotations

import contextlib
import math
import os
import stat
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from softcache.atomic import commit, temporary_path
from softcache.cache.chunk_frames import Chunking, zstandard
from softcache.cache.chunk_writer import ChunkWriter, create_chunked
from softcache.cache.described import Described
from softcache.cache.extents import (
    PAGE,
    Arrays,
    Compressed,
    Extent,
    check_places,
    compressed_arrays,
    compressed_of,
    extent_of,
)
from softcache.cache.hdf5 import read_structure
from softcache.errors import IntegrityError

Attributes = dict[str, "int | str"]


class ShardWriter:
    """Writes one file row block by row block; ``commit`` gives it its name, ``abort`` leaves nothing."""

    def __init__(
        self, path: Path, attributes: Attributes, arrays: Arrays, chunking: Mapping[str, Chunking] | None = None
    ):
        """``arrays``: name → dtype and full shape. A name may have one ``/``. ``chunking``: of those that are
        compressed, how; one that has no numbers isn't.

        Errors: ``MissingExtraError`` where something is to be compressed and zstandard isn't installed.
        """
        self.path = path
        self._part = temporary_path(path)
        self._described = Described()
        kept = compressed_arrays(arrays, chunking)
        if kept:
            zstandard()
        self._file, self._datasets = _structure(self._described, attributes, arrays, kept)
        self._fd = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        self._chunks = {
            name: ChunkWriter(self._datasets[name], how, self._described, self._fd) for name, how in kept.items()
        }
        self._crc = dict.fromkeys(arrays, 0)
        self._next = dict.fromkeys(arrays, 0)

    def write(self, first: int, arrays: dict[str, np.ndarray]) -> None:
        """Rows ``first ...`` of each array. Blocks come in order, so the checksum grows with them."""
        for name, values in arrays.items():
            dataset = self._datasets[name]
            assert first == self._next[name], (name, first, self._next[name])
            assert values.shape[1:] == dataset.shape[1:], (name, values.shape, dataset.shape)
            rows = np.ascontiguousarray(values, dtype=dataset.dtype)
            data = rows.reshape(-1).view(np.uint8).data
            row_bytes = math.prod(dataset.shape[1:]) * dataset.dtype.itemsize
            if name in self._chunks:
                self._chunks[name].write(rows)
            elif len(data):  # an array without numbers lies nowhere
                _pwrite(self._fd, data, dataset.id.get_offset() + first * row_bytes)
            self._crc[name] = zlib.crc32(data, self._crc[name])
            self._next[name] += len(values)

    def finish(self) -> Path:
        """Every row has been written: the file is whole and on the disk, under its temporary name."""
        try:
            for name, dataset in self._datasets.items():
                assert self._next[name] == len(dataset), (name, self._next[name], len(dataset))
            for chunks in self._chunks.values():
                chunks.finish()
            _seal(self._file, self._datasets, self._crc, {n: c.stored_crc32 for n, c in self._chunks.items()})
            self._described.save(self._fd)
            os.fsync(self._fd)
            return self._part
        except BaseException:
            self._part.unlink(missing_ok=True)
            raise
        finally:
            os.close(self._fd)

    def commit(self) -> None:
        """``finish``, and the file takes its name."""
        part = self.finish()
        try:
            commit(part, self.path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def abort(self) -> None:
        self._file.close()
        os.close(self._fd)
        self._part.unlink(missing_ok=True)


def file_bytes(attributes: Attributes, arrays: Arrays) -> int:
    """How large a file of these attributes and arrays is, to the byte, if nothing in it is compressed: HDF5 describes
    it in memory, and nothing is written."""
    described = Described()
    file, datasets = _structure(described, attributes, arrays, {})
    _seal(file, datasets, dict.fromkeys(arrays, 0), {})
    return described.size


def write_temporary(
    path: Path,
    attributes: Attributes,
    arrays: dict[str, np.ndarray],
    chunking: Mapping[str, Chunking] | None = None,
) -> Path:
    """A whole file that only has to be given its name, ``path``, by ``atomic.commit``. ``chunking``: as ``ShardWriter``
    takes it."""
    return _written(path, attributes, arrays, chunking).finish()


def _written(
    path: Path, attributes: Attributes, arrays: dict[str, np.ndarray], chunking: Mapping[str, Chunking] | None
) -> ShardWriter:
    held: Arrays = {name: (a.dtype.str, a.shape) for name, a in arrays.items()}
    writer = ShardWriter(path, attributes, held, chunking)
    try:
        writer.write(0, arrays)
    except BaseException:
        writer.abort()
        raise
    return writer


class Opened(NamedTuple):
    """A file of a cache that has been checked, and is still open: what was checked is what is read and mapped, whatever
    happens to its name meanwhile. ``extents``: arrays that lie there as they are, ``compressed``: the others."""

    path: Path
    fd: int
    extents: dict[str, Extent]
    compressed: Mapping[str, Compressed] = {}

    @property
    def names(self) -> list[str]:
        """Of all arrays."""
        return [*self.extents, *self.compressed]


@contextlib.contextmanager
def open_shard(
    path: Path, attributes: Attributes, arrays: Arrays, chunking: Mapping[str, Chunking] | None = None
) -> Iterator[Opened]:
    """Checks a file against what it must be and says where its arrays lie. The file is not trusted.

    Errors: ``IntegrityError`` naming the file for anything that differs: other attributes, arrays, dtypes or shapes;
    storage that is external, virtual, chunked or filtered otherwise than ``chunking`` says; bytes beyond the file's end
    or shared by two objects. ``MissingExtraError`` where it is compressed and zstandard isn't installed.
    """
    with opened(path) as (fd, size):
        yield check_structure(path, fd, size, attributes, arrays, chunking)[0]


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[int, int]]:
    """A file's descriptor and size. Links are followed, as some stores of files are made of them; pipes and devices
    are refused.

    Errors: ``IntegrityError`` naming the file.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        what = "is missing" if isinstance(error, FileNotFoundError) else f"can't be opened: {error.strerror}"
        raise IntegrityError(f"{path} {what}") from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise IntegrityError(f"{path} is no regular file")
        yield fd, status.st_size
    finally:
        os.close(fd)


def check_structure(
    path: Path,
    fd: int,
    size: int,
    attributes: Attributes,
    arrays: Arrays,
    chunking: Mapping[str, Chunking] | None = None,
) -> tuple[Opened, list[tuple[int, int]]]:
    """``open_shard`` on an open file; also the (offset, length) of all bytes that describe it."""
    kept = compressed_arrays(arrays, chunking)
    if kept:
        zstandard()
    try:
        structure = read_structure(fd, size)
    except (IntegrityError, OSError) as error:
        raise IntegrityError(f"{path} {error}") from None
    nodes = structure.nodes
    if nodes[""].attributes != attributes:
        raise IntegrityError(f"{path} {_difference(nodes[''].attributes, attributes)}")
    groups = {name.rpartition("/")[0] for name in arrays} - {""}
    expected = {"", *groups, *arrays}
    if set(nodes) != expected or not all(nodes[name].is_group for name in ["", *groups]):
        found = ", ".join(sorted(set(nodes) - {""})) or "nothing"
        raise IntegrityError(f"{path} holds {found[:200]}, expected {', '.join(sorted(expected - {''}))}")
    if any(nodes[group].attributes for group in groups):
        raise IntegrityError(f"{path} has attributes where shards have none")
    extents = {name: extent_of(nodes[name], name, *spec, path) for name, spec in arrays.items() if name not in kept}
    compressed = {name: compressed_of(nodes[name], name, *arrays[name], how, path) for name, how in kept.items()}
    places = [(e.offset, e.nbytes) for e in extents.values()] + structure.described
    for one in compressed.values():
        places += zip(one.chunks.offset.tolist(), one.chunks.stored.tolist(), strict=True)
    check_places(places, size, path)
    return Opened(path, fd, extents, compressed), structure.described


def read_array(file: Opened, name: str) -> np.ndarray:
    """An array of a file, read and checked against its checksum.

    Errors: ``IntegrityError`` where its bytes are not what was written.
    """
    if name in file.compressed:
        return _read_chunks(file, file.compressed[name])
    extent, data = file.extents[name], bytearray()
    for block in read_blocks(file.fd, extent.offset, extent.nbytes):
        data += block
    if len(data) != extent.nbytes or zlib.crc32(data) != extent.crc32:
        raise IntegrityError(f"{file.path} is damaged: its bytes don't match their checksum")
    return np.frombuffer(data, extent.dtype).reshape(extent.shape)


def _read_chunks(file: Opened, array: Compressed) -> np.ndarray:
    found = np.empty(array.shape, array.dtype)
    read_rows(file, array, 0, found)
    if zlib.crc32(found.reshape(-1).view(np.uint8).data) != array.crc32:
        raise IntegrityError(f"{file.path} is damaged: its bytes don't match their checksum")
    return found


def read_rows(file: Opened, array: Compressed, first: int, out: np.ndarray) -> None:
    """Rows ``first ...`` of a compressed array of an open file into ``out``, (n, …) and contiguous. Of chunks that have
    other rows too, these are left out.

    Errors: as ``read_chunk``.
    """
    rows, at = array.chunks.rows, 0
    while at < len(out):
        number, skip = divmod(first + at, rows)
        own = min(rows, array.shape[0] - number * rows)
        count = min(own - skip, len(out) - at)
        if count == own:
            read_chunk(file, array, number, out[at : at + count])
        else:
            whole = np.empty((own, *array.shape[1:]), array.dtype)
            read_chunk(file, array, number, whole)
            out[at : at + count] = whole[skip : skip + count]
        at += count


def read_chunk(file: Opened, array: Compressed, number: int, out: np.ndarray) -> bytes:
    """Reads a chunk of an open file into ``out``, whose rows are the chunk's, or its first ones. Result: the chunk as
    it lies in the file.

    Errors: ``IntegrityError`` where it is no chunk of this array.
    """
    offset, stored = int(array.chunks.offset[number]), int(array.chunks.stored[number])
    frame = os.pread(file.fd, stored, offset)
    if len(frame) != stored:
        raise IntegrityError(f"{file.path} has been truncated")
    try:
        array.decode(frame, out)
    except IntegrityError as error:
        raise IntegrityError(f"{file.path} {error}") from None
    return frame


def read_blocks(fd: int, offset: int, nbytes: int, block: int = 2**20) -> Iterator[memoryview]:
    """Bytes of a file in order, each block valid until the next is asked for; fewer than ``nbytes`` where it ends.

    One buffer that stays in the processor's cache: fresh ones of 8 MiB took half the time of a checksum.
    """
    buffer = memoryview(bytearray(min(block, nbytes)))
    while nbytes:
        count = os.preadv(fd, [buffer[:nbytes]], offset)
        if not count:
            return
        yield buffer[:count]
        offset, nbytes = offset + count, nbytes - count


def _structure(
    described: Described, attributes: Attributes, arrays: Arrays, chunking: Mapping[str, Chunking]
) -> tuple[h5py.File, dict[str, h5py.Dataset]]:
    """A file with its attributes and with arrays that have their places, and no numbers yet."""
    file = _create(described)
    for key, value in attributes.items():
        file.attrs.create(key, _fixed(value))
    plain = {name: _dataset(file, name, *spec) for name, spec in arrays.items() if name not in chunking}
    if not chunking:
        return file, plain
    file.close()  # and opened again: chunks are not to begin on a page each, as all that is in it by now does
    file = h5py.File(h5py.h5f.open(b"described", h5py.h5f.ACC_RDWR, fapl=_access(described)))
    found = {}
    for name, (dtype, shape) in arrays.items():
        how = chunking.get(name)
        found[name] = file[name] if how is None else create_chunked(file, name, _kind(dtype), shape, how)
    return file, found


def _seal(file: h5py.File, datasets: dict[str, h5py.Dataset], crc: dict[str, int], stored_crc: dict[str, int]) -> None:
    """Gives each array its checksums and closes the file."""
    for name, dataset in datasets.items():
        dataset.attrs.create("crc32", np.uint32(crc[name]))
        if name in stored_crc:
            dataset.attrs.create("stored_crc32", np.uint32(stored_crc[name]))
    file.close()


def _create(described: Described) -> h5py.File:
    fcpl = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    fcpl.set_obj_track_times(False)  # times would make two dumps of the same numbers differ
    fapl = _access(described)
    fapl.set_alignment(1, PAGE)
    return h5py.File(h5py.h5f.create(b"described", h5py.h5f.ACC_TRUNC, fcpl=fcpl, fapl=fapl))


def _access(described: Described) -> h5py.h5p.PropFAID:
    fapl = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    fapl.set_libver_bounds(h5py.h5f.LIBVER_V110, h5py.h5f.LIBVER_V110)  # metadata with checksums
    fapl.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    fapl.set_fileobj_driver(h5py.h5fd.fileobj_driver, described)
    return fapl


def _dataset(file: h5py.File, name: str, dtype: str, shape: tuple[int, ...]) -> h5py.Dataset:
    group, _, _ = name.rpartition("/")
    if group and group not in file:
        gcpl = h5py.h5p.create(h5py.h5p.GROUP_CREATE)
        gcpl.set_obj_track_times(False)
        h5py.h5g.create(file.id, group.encode(), gcpl=gcpl)
    dcpl = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    dcpl.set_layout(h5py.h5d.CONTIGUOUS)
    dcpl.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    dcpl.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    dcpl.set_obj_track_times(False)
    return h5py.Dataset(h5py.h5d.create(file.id, name.encode(), _kind(dtype), h5py.h5s.create_simple(shape), dcpl))


def _kind(dtype: str) -> h5py.h5t.TypeID:
    return h5py.h5t.py_create(np.dtype(dtype).newbyteorder("<"), logical=True)


def _pwrite(fd: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def _fixed(value: int | str) -> Any:
    """Fixed-length attributes only: HDF5's heap for variable-length ones has no checksum."""
    return np.bytes_(value.encode()) if isinstance(value, str) else np.int64(value)


def _difference(found: Attributes, expected: Attributes) -> str:
    for key, value in expected.items():
        if key not in found:
            return f"lacks its attribute {key!r}"
        if found[key] != value:
            return f"has {key} {repr(found[key])[:80]}, expected {value!r}"
    return f"has attributes that shards don't have: {', '.join(sorted(set(found) - set(expected)))[:80]}"
