"""One HDF5 file of a cache: made so that its arrays can be written and memory-mapped by position.

HDF5 describes the file and h5py opens and checks it; the numbers themselves never pass through either. Every
dataset is contiguous, allocated when it is created, never filled, aligned to a page, and has a ``crc32``.
"""

from __future__ import annotations

import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from softcache.cache.atomic import commit, part_path
from softcache.errors import IntegrityError

PAGE = 4096
Attributes = dict[str, "int | str"]


@dataclass(frozen=True)
class Extent:
    """Where an array lies in its file: ``offset`` in bytes, ``shape`` with rows first."""

    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]
    crc32: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class ShardWriter:
    """Writes one file row block by row block; ``commit`` gives it its name, ``abort`` leaves nothing."""

    def __init__(self, path: Path, attributes: Attributes, arrays: dict[str, tuple[str, tuple[int, ...]]]):
        """``arrays``: name → dtype and full shape. A name may have one ``/``."""
        self.path = path
        self._part = part_path(path)
        self._file = _create(self._part)
        try:
            for key, value in attributes.items():
                self._file.attrs.create(key, _fixed(value))
            self._datasets = {name: _dataset(self._file, name, *spec) for name, spec in arrays.items()}
            self._file.flush()
            self._fd = os.open(self._part, os.O_RDWR)
        except BaseException:
            self._file.close()
            self._part.unlink(missing_ok=True)
            raise
        self._crc = dict.fromkeys(arrays, 0)
        self._next = dict.fromkeys(arrays, 0)

    def write(self, first: int, arrays: dict[str, np.ndarray]) -> None:
        """Rows ``first ...`` of each array. Blocks come in order, so the checksum grows with them."""
        for name, values in arrays.items():
            dataset = self._datasets[name]
            assert first == self._next[name], (name, first, self._next[name])
            assert values.shape[1:] == dataset.shape[1:], (name, values.shape, dataset.shape)
            data = np.ascontiguousarray(values, dtype=dataset.dtype).data.cast("B")
            row_bytes = math.prod(dataset.shape[1:]) * dataset.dtype.itemsize
            _pwrite(self._fd, data, dataset.id.get_offset() + first * row_bytes)
            self._crc[name] = zlib.crc32(data, self._crc[name])
            self._next[name] += len(values)

    def commit(self) -> None:
        """Every row has been written: the file is flushed to the disk and takes its name."""
        try:
            for name, dataset in self._datasets.items():
                assert self._next[name] == len(dataset), (name, self._next[name], len(dataset))
                dataset.attrs.create("crc32", np.uint32(self._crc[name]))
            self._file.close()
            os.fsync(self._fd)
            os.close(self._fd)
            commit(self._part, self.path)
        except BaseException:
            self._part.unlink(missing_ok=True)
            raise

    def abort(self) -> None:
        self._file.close()
        os.close(self._fd)
        self._part.unlink(missing_ok=True)


def write_arrays(path: Path, attributes: Attributes, arrays: dict[str, np.ndarray]) -> None:
    """A whole file at once."""
    writer = ShardWriter(path, attributes, {name: (a.dtype.str, a.shape) for name, a in arrays.items()})
    try:
        writer.write(0, arrays)
    except BaseException:
        writer.abort()
        raise
    writer.commit()


def open_shard(path: Path, attributes: Attributes, arrays: dict[str, tuple[str, tuple[int, ...]]]) -> dict[str, Extent]:
    """Checks a file against what it must be and says where its arrays lie. The file is not trusted.

    Errors: ``IntegrityError`` naming the file for anything that differs: other attributes, datasets, dtypes or
    shapes; storage that is external, virtual or filtered; bytes beyond the file's end or shared by two arrays.
    """
    try:
        size = os.path.getsize(path)
        with h5py.File(path, "r", locking=False) as file:
            _check_tree(file, arrays, path)
            for key, expected in attributes.items():
                found = _attribute(file, key, path)
                if found != expected:
                    raise IntegrityError(f"{path}: {key} is {found!r}, expected {expected!r}")
            extents = {name: _extent(file, name, *spec, path) for name, spec in arrays.items()}
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
        if isinstance(error, FileNotFoundError):
            raise IntegrityError(f"{path} is missing") from None
        raise IntegrityError(f"{path} is damaged: {' '.join(str(error).split())[:160]}") from None
    _check_places(extents, size, path)
    return extents


def read_extent(path: Path, extent: Extent) -> np.ndarray:
    """The array itself, read and checked against its checksum."""
    with open(path, "rb") as file:
        file.seek(extent.offset)
        data = file.read(extent.nbytes)
    if len(data) != extent.nbytes or zlib.crc32(data) != extent.crc32:
        raise IntegrityError(f"{path} is damaged: its bytes don't match their checksum")
    return np.frombuffer(data, extent.dtype).reshape(extent.shape)


def _create(path: Path) -> h5py.File:
    fcpl = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    fcpl.set_obj_track_times(False)  # times would make two dumps of the same numbers differ
    fapl = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    fapl.set_libver_bounds(h5py.h5f.LIBVER_V110, h5py.h5f.LIBVER_V110)  # metadata with checksums
    fapl.set_alignment(1, PAGE)
    fapl.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    return h5py.File(h5py.h5f.create(os.fsencode(path), h5py.h5f.ACC_EXCL, fcpl=fcpl, fapl=fapl))


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
    kind = h5py.h5t.py_create(np.dtype(dtype).newbyteorder("<"), logical=True)
    return h5py.Dataset(h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple(shape), dcpl))


def _pwrite(fd: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def _fixed(value: int | str) -> Any:
    """Fixed-length attributes only: HDF5's heap for variable-length ones has no checksum."""
    return np.bytes_(value.encode()) if isinstance(value, str) else np.int64(value)


def _attribute(owner: Any, key: str, path: Path) -> int | str:
    if key not in owner.attrs:
        raise IntegrityError(f"{path}: attribute {key!r} is missing")
    kind = owner.attrs.get_id(key).get_type()
    if isinstance(kind, h5py.h5t.TypeStringID):
        if kind.is_variable_str():
            raise IntegrityError(f"{path}: attribute {key!r} is variable-length")
        return bytes(owner.attrs[key]).decode("utf-8", "replace")
    if not isinstance(kind, h5py.h5t.TypeIntegerID) or owner.attrs.get_id(key).shape != ():
        raise IntegrityError(f"{path}: attribute {key!r} is not one number")
    return int(owner.attrs[key])


def _check_tree(file: h5py.File, arrays: dict[str, Any], path: Path) -> None:
    """Exactly the expected names, reached by hard links only."""
    groups = {name.rpartition("/")[0] for name in arrays} - {""}
    for group in ["", *groups]:
        owner = file[group] if group else file
        expected = {n.split("/")[-1] for n in arrays if n.rpartition("/")[0] == group} | (
            groups if not group else set()
        )
        if set(owner) != expected:
            raise IntegrityError(f"{path} holds {sorted(owner)} in /{group}, expected {sorted(expected)}")
        for name in expected:
            if not isinstance(owner.get(name, getlink=True), h5py.HardLink):
                raise IntegrityError(f"{path}: {name} is a link to somewhere else")


def _extent(file: h5py.File, name: str, dtype: str, shape: tuple[int, ...], path: Path) -> Extent:
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise IntegrityError(f"{path}: {name} is no dataset")
    plist = dataset.id.get_create_plist()
    if plist.get_layout() != h5py.h5d.CONTIGUOUS or plist.get_external_count() or plist.get_nfilters():
        raise IntegrityError(f"{path}: {name} is not stored contiguously in this file")
    wanted = np.dtype(dtype).newbyteorder("<")
    if not isinstance(dataset.id.get_type(), (h5py.h5t.TypeIntegerID, h5py.h5t.TypeFloatID, h5py.h5t.TypeStringID)):
        raise IntegrityError(f"{path}: {name} has a type that shards don't have")
    if dataset.dtype != wanted or dataset.shape != tuple(shape):
        raise IntegrityError(f"{path}: {name} is {dataset.dtype} {dataset.shape}, expected {wanted} {tuple(shape)}")
    crc = _attribute(dataset, "crc32", path)
    offset = dataset.id.get_offset()
    if offset is None or not isinstance(crc, int):
        raise IntegrityError(f"{path}: {name} has no bytes or no checksum")
    return Extent(int(offset), wanted, tuple(shape), crc)


def _check_places(extents: dict[str, Extent], size: int, path: Path) -> None:
    end = 0
    for name, extent in sorted(extents.items(), key=lambda item: item[1].offset):
        if extent.offset < end or extent.offset + extent.nbytes > size:
            raise IntegrityError(f"{path}: {name} lies outside its file or over another array")
        end = extent.offset + extent.nbytes
