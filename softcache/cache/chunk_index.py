"""Where the chunks of a compressed array lie in an HDF5 file, read without the HDF5 library.

Of the ways in which HDF5 keeps chunks, shards have two: a single chunk, whose place is in the array's own header, and
the fixed array, a table with the place and size of each chunk, in pages that have a checksum each. Both are bounded by
the array's shape, and nothing in them leads anywhere but to the chunks. Anything else is refused by name.

Source: "HDF5 File Format Specification, version 3.0", the sections on the fixed array index, on version 4 of the data
layout message and on the filter pipeline message.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from softcache.cache.hdf5_bytes import lookup3, read_at, u32
from softcache.errors import IntegrityError
from softcache.ragged import Int64

SHUFFLE, ZSTD = 2, 32015  # the numbers that these filters are registered by
MAX_CHUNKS = 1 << 15  # of an array; each takes 15 bytes or so of the index, which go through a checksum in Python
_SINGLE, _FIXED_ARRAY = 1, 3
_FILTERED_SINGLE = 0x02
_PAGE_BITS = 10  # HDF5 cuts the index of more than 1,024 chunks into pages of so many
_HEADER_BYTES = 28


@dataclass(frozen=True)
class ChunkLayout:
    """What an array's header says of its chunks: ``shape`` of one, ``itemsize``, and where their index lies; or of a
    single chunk its place and its bytes in the file, ``stored``."""

    shape: tuple[int, ...]
    itemsize: int
    address: int
    stored: int | None


@dataclass(frozen=True)
class Filters:
    """What each chunk went through: ``shuffle``, the bytes of an item whose bytes were sorted by place, 0 where they
    were not, and zstd."""

    shuffle: int


class Chunks(NamedTuple):
    """The chunks of an array, in the order of its rows: ``rows`` of each, the last one filled up with more than there
    are; whether they are ``shuffled``; (n,) int64 ``offset`` and ``stored`` bytes of each in the file."""

    rows: int
    shuffled: bool
    offset: Int64
    stored: Int64


def parse_layout(body: bytes) -> ChunkLayout:
    """The message of a chunked array, version 4. Errors: ``IntegrityError``; ``struct.error`` where it ends early."""
    version, _, flags, rank, width = body[:5]
    if version != 4 or not 2 <= rank <= 33 or not 1 <= width <= 8:
        raise IntegrityError("has an array that is chunked in a way that shards don't have")
    sizes = [int.from_bytes(body[5 + width * k : 5 + width * (k + 1)], "little") for k in range(rank)]
    at = 5 + width * rank
    kind = body[at]
    if kind == _SINGLE and flags == _FILTERED_SINGLE and len(body) == at + 21:
        stored, mask, address = struct.unpack_from("<QIQ", body, at + 1)
        if mask:
            raise IntegrityError("has a chunk that skips a filter")
        return ChunkLayout(tuple(sizes[:-1]), sizes[-1], address, stored)
    if kind == _FIXED_ARRAY and flags == 0 and len(body) == at + 10 and body[at + 1] == _PAGE_BITS:
        return ChunkLayout(tuple(sizes[:-1]), sizes[-1], struct.unpack_from("<Q", body, at + 2)[0], None)
    raise IntegrityError("has an array that is chunked, with an index that shards don't have")


def parse_filters(body: bytes) -> Filters:
    """The message of an array's filters, version 2. Errors: ``IntegrityError`` for others than those of shards."""
    version, count = body[:2]
    found, at = [], 2
    for _ in range(count if version == 2 and count <= 2 else 0):
        (number,) = struct.unpack_from("<H", body, at)
        named = number >= 256  # others than HDF5's own may have their name beside their number
        (name,) = struct.unpack_from("<H", body, at + 2) if named else (0,)
        at += 4 if named else 2
        flags, values = struct.unpack_from("<HH", body, at)
        at += 4 + name
        found.append((number, flags, struct.unpack_from(f"<{values}I", body, at)))
        at += 4 * values
    numbers = [number for number, _, _ in found]
    if numbers not in ([ZSTD], [SHUFFLE, ZSTD]) or at != len(body) or any(len(values) != 1 for _, _, values in found):
        raise IntegrityError("has filters that shards don't have")
    return Filters(found[0][2][0] if numbers[0] == SHUFFLE else 0)


def read_chunks(
    fd: int, size: int, layout: ChunkLayout, filters: Filters | None, shape: tuple[int, ...], budget: int
) -> tuple[Chunks, list[tuple[int, int]]]:
    """The chunks of an array of an open file of ``size`` bytes, and the (offset, length) of all bytes of their index,
    each of which ends with a checksum that has been checked. ``budget``: bytes that the index may have.

    Each chunk has whole rows, but for the last one as many as the others. Errors: ``IntegrityError`` where the index
    is damaged or isn't that of such chunks, or is larger.
    """
    if filters is None or filters.shuffle not in (0, layout.itemsize):
        raise IntegrityError("has an array that is chunked and not compressed as shards are")
    if not shape or layout.shape[1:] != shape[1:] or not 0 < layout.shape[0] <= shape[0] or not math.prod(shape):
        raise IntegrityError(f"has an array {shape} that is chunked by {layout.shape}, not by whole rows")
    rows, shuffled = layout.shape[0], filters.shuffle > 0
    count = -(-shape[0] // rows)
    if layout.stored is not None:
        if count != 1:
            raise IntegrityError(f"has an array of {count} chunks with the index of one")
        return Chunks(rows, shuffled, *_placed([(layout.address, layout.stored)])), []
    if not 1 < count <= MAX_CHUNKS:
        raise IntegrityError(f"has an array of {count} chunks with an index of 2 to {MAX_CHUNKS}")
    header = read_at(fd, size, layout.address, _HEADER_BYTES)
    entry, entries, place = header[6], *struct.unpack_from("<QQ", header, 8)
    # version 0, of filtered chunks: each has an address, a size of entry - 12 bytes and a filter mask
    if header[:6] != b"FAHD\0\x01" or header[7] != _PAGE_BITS or not 13 <= entry <= 20:
        raise IntegrityError(f"has no index of chunks of a known kind at {layout.address}")
    if lookup3(header[:-4]) != u32(header, _HEADER_BYTES - 4):
        raise IntegrityError(f"has an index of chunks at {layout.address} that doesn't match its checksum")
    if entries != count:
        raise IntegrityError(f"has an index of {entries} chunks, and {count} chunks")
    regions = [(layout.address, _HEADER_BYTES), *_pages(place, count, entry)]
    if sum(length for _, length in regions) > budget:
        raise IntegrityError("describes itself at greater length than any shard")
    pieces = []
    for number, (offset, length) in enumerate(regions[1:]):
        data = read_at(fd, size, offset, length)
        if lookup3(data[:-4]) != u32(data, length - 4):
            raise IntegrityError(f"has an index of chunks at {offset} that doesn't match its checksum")
        skip = _check_block(data, layout.address, count) if number == 0 else 0
        pieces.append(data[skip:-4])
    return Chunks(rows, shuffled, *_placed_by(b"".join(pieces), entry)), regions


def _pages(place: int, count: int, entry: int) -> list[tuple[int, int]]:
    """(offset, length) of the table's parts, the checksum at the end of each included."""
    page = 1 << _PAGE_BITS
    if count <= page:
        return [(place, 14 + count * entry + 4)]
    pages = -(-count // page)
    head = 14 + -(-pages // 8) + 4
    found = [(place, head)]
    for number in range(pages):
        own = min(page, count - number * page)
        found.append((place + head + number * (page * entry + 4), own * entry + 4))
    return found


def _check_block(data: bytes, header: int, count: int) -> int:
    """Checks how the table begins; the bytes that this takes."""
    if data[:6] != b"FADB\0\x01" or struct.unpack_from("<Q", data, 6)[0] != header:
        raise IntegrityError("has an index of chunks whose table is of something else")
    if count <= 1 << _PAGE_BITS:
        return 14
    pages = -(-count // (1 << _PAGE_BITS))
    made = np.packbits(np.ones(pages, bool)).tobytes()  # one bit for each page that is there, the first one highest
    if data[14:-4] != made:
        raise IntegrityError("has an index of chunks of which a page is missing")
    return len(data) - 4


def _placed_by(table: bytes, entry: int) -> tuple[Int64, Int64]:
    columns = np.frombuffer(table, np.uint8).reshape(-1, entry)
    if columns[:, -4:].any():
        raise IntegrityError("has a chunk that skips a filter")
    stored = np.zeros((len(columns), 8), np.uint8)
    stored[:, : entry - 12] = columns[:, 8:-4]
    offset = np.ascontiguousarray(columns[:, :8])
    return _checked(offset.view("<u8")[:, 0], stored.view("<u8")[:, 0])


def _placed(places: list[tuple[int, int]]) -> tuple[Int64, Int64]:
    both = np.array(places, np.uint64).reshape(-1, 2)
    return _checked(both[:, 0], both[:, 1])


def _checked(offset: np.ndarray, stored: np.ndarray) -> tuple[Int64, Int64]:
    """As int64, which is wide enough for what a file can have."""
    if bool((offset >= 2**62).any()) or bool((stored >= 2**62).any()) or bool((stored == 0).any()):
        raise IntegrityError("has a chunk that lies nowhere, or has no bytes")
    return offset.astype(np.int64), stored.astype(np.int64)
