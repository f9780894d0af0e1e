"""Writing a compressed array chunk by chunk: HDF5 says where each frame belongs, and it is written there past it."""

from __future__ import annotations

import os
import zlib

import h5py
import numpy as np

from softcache.cache.chunk_frames import Chunking, encoder
from softcache.cache.chunk_index import SHUFFLE, ZSTD
from softcache.cache.described import Described


def create_chunked(
    file: h5py.File, name: str, kind: h5py.h5t.TypeID, shape: tuple[int, ...], chunking: Chunking
) -> h5py.Dataset:
    """An array without chunks yet. Other programs need a plug-in for the filter; here the HDF5 library never runs it,
    which is why it is called optional."""
    dcpl = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    dcpl.set_chunk((min(chunking.rows, shape[0]), *shape[1:]))
    if chunking.shuffle:
        dcpl.set_filter(SHUFFLE, h5py.h5z.FLAG_OPTIONAL)
    dcpl.set_filter(ZSTD, h5py.h5z.FLAG_OPTIONAL, (chunking.level,))
    dcpl.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    dcpl.set_obj_track_times(False)
    return h5py.Dataset(h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple(shape), dcpl))


class ChunkWriter:
    """The rows of one array, which come in order. ``stored_crc32``: of all frames so far."""

    def __init__(self, dataset: h5py.Dataset, chunking: Chunking, described: Described, fd: int):
        self._dataset, self._shuffle = dataset, chunking.shuffle
        self._described, self._fd = described, fd
        self._encode = encoder(chunking.level)
        self._chunk = np.zeros(dataset.chunks, dataset.dtype)
        self._filled = self._first = 0
        self.stored_crc32 = 0

    def write(self, values: np.ndarray) -> None:
        """The next rows (n, …), of the array's dtype."""
        size = len(self._chunk)
        while len(values):
            if not self._filled and len(values) >= size:
                self._put(values[:size])
                values = values[size:]
                continue
            count = min(size - self._filled, len(values))
            self._chunk[self._filled : self._filled + count] = values[:count]
            self._filled, values = self._filled + count, values[count:]
            if self._filled == size:
                self._put(self._chunk)
                self._filled = 0

    def finish(self) -> None:
        """The last chunk is filled up with zeros."""
        if self._filled:
            self._chunk[self._filled :] = 0
            self._put(self._chunk)
            self._filled = 0

    def _put(self, values: np.ndarray) -> None:
        frame = self._encode(values, self._shuffle)
        place = (self._first, *(0 for _ in values.shape[1:]))
        with self._described.passing(frame) as passed:
            self._dataset.id.write_direct_chunk(place, frame, 0)
        (offset,) = passed
        self.stored_crc32 = zlib.crc32(frame, self.stored_crc32)
        self._first += len(self._chunk)
        left = memoryview(frame)
        while left:
            written = os.pwrite(self._fd, left, offset)
            left, offset = left[written:], offset + written
