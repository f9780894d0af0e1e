"""Every byte of a file of a cache, accounted for.

The superblock and the object headers carry HDF5's own checksums, each array has its ``crc32``, one that is compressed
also a checksum of its chunks as they lie in the file, and what lies between them (an array begins on a page) is zero.
So there is no byte whose change could go unnoticed.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from softcache.cache.chunk_frames import Chunking
from softcache.cache.extents import Arrays, Compressed, Extent
from softcache.cache.shard import Attributes, Opened, check_structure, opened, read_blocks, read_chunk
from softcache.errors import IntegrityError


@dataclass(frozen=True)
class Flaw:
    """What is wrong with a file: with one of its arrays, or (``None``) with the file as such."""

    array: str | None
    what: str


def check_file(
    path: Path,
    attributes: Attributes,
    arrays: Arrays,
    progress: Callable[[int], None] | None = None,
    chunking: Mapping[str, Chunking] | None = None,
) -> list[Flaw]:
    """All flaws of a file; none where each byte is what was written. Reads it once, from front to back.

    ``progress`` is told of bytes as they are checked, from the thread that calls this. ``chunking``: of arrays that are
    compressed, how; these are decompressed, a chunk at a time.
    """
    report = progress or (lambda count: None)
    flaws: list[Flaw] = []
    try:
        with opened(path) as (fd, size):
            file, described = check_structure(path, fd, size, attributes, arrays, chunking)
            report(sum(length for _, length in described))
            named = {extent.offset: (name, extent) for name, extent in file.extents.items() if extent.nbytes}
            for name, array in file.compressed.items():
                flaws += [Flaw(name, what) for what in _flaws_of_chunks(file, array, report)]
                described += zip(array.chunks.offset.tolist(), array.chunks.stored.tolist(), strict=True)
            for offset, length in _between(described, size):
                at = offset
                for start in sorted(place for place in named if offset <= place < offset + length):
                    name, extent = named[start]
                    _check_zeros(fd, at, start - at, flaws, report)
                    if _crc(fd, extent, report) != extent.crc32:
                        flaws.append(Flaw(name, "doesn't match its checksum"))
                    at = start + extent.nbytes
                _check_zeros(fd, at, offset + length - at, flaws, report)
    except IntegrityError as error:
        flaws.append(Flaw(None, str(error).removeprefix(str(path)).lstrip(": ")))
    except OSError as error:  # a disk that can't give what it has
        flaws.append(Flaw(None, f"can't be read: {error.strerror}"))
    return flaws


def is_intact(file: Opened, name: str) -> bool:
    """Whether an array's bytes on disk match their checksum."""
    if name not in file.compressed:
        return checksum(file, name) == file.extents[name].crc32
    chunks, crc = file.compressed[name].chunks, 0
    for offset, stored in zip(chunks.offset.tolist(), chunks.stored.tolist(), strict=True):
        for block in read_blocks(file.fd, offset, stored):
            crc = zlib.crc32(block, crc)
    return crc == file.compressed[name].stored_crc32


def checksum(file: Opened, name: str) -> int:
    """crc32 of the bytes on disk of an array that isn't compressed."""
    return _crc(file.fd, file.extents[name], lambda count: None)


def _flaws_of_chunks(file: Opened, array: Compressed, report: Callable[[int], None]) -> list[str]:
    """What is wrong with a compressed array: with its chunks as they lie there, or with the numbers in them."""
    crc = stored_crc = 0
    out = np.empty((array.chunks.rows, *array.shape[1:]), array.dtype)
    for number in range(len(array.chunks.offset)):
        rows = out[: array.shape[0] - number * array.chunks.rows]
        try:
            frame = read_chunk(file, array, number, rows)
        except IntegrityError as error:
            return [str(error).removeprefix(str(file.path)).lstrip(": ")]
        crc = zlib.crc32(rows.reshape(-1).view(np.uint8).data, crc)
        stored_crc = zlib.crc32(frame, stored_crc)
        report(len(frame))
    return [] if (crc, stored_crc) == (array.crc32, array.stored_crc32) else ["doesn't match its checksum"]


def _crc(fd: int, extent: Extent, report: Callable[[int], None]) -> int:
    crc, left = 0, extent.nbytes
    for block in read_blocks(fd, extent.offset, extent.nbytes):
        crc, left = zlib.crc32(block, crc), left - len(block)  # zlib lets other threads run meanwhile
        report(len(block))
    if left:
        raise IntegrityError("has been truncated")
    return crc


def _check_zeros(fd: int, offset: int, length: int, flaws: list[Flaw], report: Callable[[int], None]) -> None:
    for block in read_blocks(fd, offset, length):
        if block != bytes(len(block)):
            flaws.append(Flaw(None, f"has bytes near {offset} that belong to nothing and are not zero"))
            return
        report(len(block))


def _between(described: list[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of what the description leaves out."""
    end = 0
    for offset, length in sorted(described):
        if offset > end:
            yield end, offset - end
        end = offset + length
    if size > end:
        yield end, size - end
