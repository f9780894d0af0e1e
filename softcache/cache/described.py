"""The bytes that HDF5 writes to describe a file, held in memory until the file is finished.

The HDF5 library can't recover from a write that fails: on a full disk it raises errors without a cause, then raises
them again when the file is closed. Here it never sees the disk. It writes into this object, the arrays' numbers are
written past it as always, and what it wrote goes to the disk by plain writes, whose errors have a number.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


class Described:
    """As much of a binary file as h5py's ``fileobj`` driver asks for. Nothing is kept but what was written."""

    def __init__(self) -> None:
        self._pieces: list[tuple[int, bytes]] = []
        self._at = 0
        self._size = 0
        self._passing: bytes | None = None
        self._passed: list[int] = []

    @property
    def size(self) -> int:
        """Bytes of the whole file, its arrays included."""
        return self._size

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + (self._size if whence == os.SEEK_END else self._at if whence == os.SEEK_CUR else 0)
        return self._at

    def tell(self) -> int:
        return self._at

    @contextlib.contextmanager
    def passing(self, data: bytes) -> Iterator[list[int]]:
        """Within it, HDF5 writes ``data``, which is not kept: the caller writes it to the offset that is given."""
        self._passing, self._passed = data, []
        try:
            yield self._passed
        finally:
            self._passing = None

    def write(self, data: memoryview) -> int:
        held = bytes(data)
        if held == self._passing:
            self._passed.append(self._at)
        else:
            self._pieces.append((self._at, held))
        self._at += len(data)
        self._size = max(self._size, self._at)
        return len(data)

    def readinto(self, buffer: memoryview) -> int:
        first, count = self._at, len(buffer)
        buffer[:] = bytes(count)
        for offset, data in self._pieces:  # later ones over earlier ones
            start, stop = max(first, offset), min(first + count, offset + len(data))
            if start < stop:
                buffer[start - first : stop - first] = data[start - offset : stop - offset]
        self._at += count
        return count

    def truncate(self, size: int) -> int:
        self._size = size
        return size

    def flush(self) -> None:
        """Nothing is written before ``save``."""

    def save(self, fd: int) -> None:
        """Writes all of it to where it belongs in a file, whose size then is right.

        Errors: ``OSError`` with its number.
        """
        for offset, data in self._pieces:
            view = memoryview(data)
            while view:
                written = os.pwrite(fd, view, offset)
                view, offset = view[written:], offset + written
        os.ftruncate(fd, self._size)
