"""Where the arrays of an HDF5 file lie, read without the HDF5 library.

A shard is untrusted input, and the HDF5 library is a large parser written in C. Shards use a small part of the file
format (superblock 3, object headers 2, compact groups, contiguous arrays, and chunks as ``chunk_index.py`` has them),
so that part is read here, in Python, by bytes: nothing can crash, hang or allocate without bounds, no path in a file
is ever followed, and every checksum that HDF5 defines for its structure is checked. Anything else is refused by name.

Source: "HDF5 File Format Specification, version 3.0", sections II.A, IV.A.1.b and IV.A.2.
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass, field

import numpy as np

from softcache.cache.chunk_index import ChunkLayout, Chunks, Filters, parse_filters, parse_layout, read_chunks
from softcache.cache.hdf5_bytes import lookup3, read_at, u32
from softcache.errors import IntegrityError

SUPERBLOCK_BYTES = 48
MAX_HEADER_BYTES = 1 << 16
MAX_DESCRIBED_BYTES = 1 << 18  # shards have some 2,000; each byte goes through a checksum in Python
MAX_INDEX_BYTES = 1 << 20  # beside that, of the places of all compressed chunks
MAX_PARTS = 16  # of an object header
MAX_LINKS = 64
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_UNDEFINED = b"\xff" * 8

_NIL, _DATASPACE, _LINK_INFO, _DATATYPE, _FILL, _LINK = 0x00, 0x01, 0x02, 0x03, 0x05, 0x06
_LAYOUT, _GROUP_INFO, _FILTERS, _ATTRIBUTE, _CONTINUATION, _ATTRIBUTE_INFO = 0x08, 0x0A, 0x0B, 0x0C, 0x10, 0x15
_REFUSED = {
    0x04: "a fill value of an old kind",
    0x07: "external storage",
    0x0E: "a driver",
    0x0F: "shared messages",
    0x11: "a symbol table",
    0x16: "an object with several links",
}
_LAYOUTS = {0: "compact", 2: "chunked", 3: "virtual"}
_CHUNKED = 2
_FLOATS = {
    2: bytes.fromhex("0000 1000 0a 05 00 0a 0f000000"),
    4: bytes.fromhex("0000 2000 17 08 00 17 7f000000"),
    8: bytes.fromhex("0000 4000 34 0b 00 34 ff030000"),
}
_FLOAT_SIGN = {2: 0x0F, 4: 0x1F, 8: 0x3F}


@dataclass
class Node:
    """An object of the file: ``links`` of a group, or ``dtype``, ``shape`` and ``place`` of an array, of a compressed
    one ``chunks`` in place of it."""

    attributes: dict[str, int | str] = field(default_factory=dict)
    links: dict[str, int] = field(default_factory=dict)
    dtype: np.dtype | None = None
    shape: tuple[int, ...] | None = None
    place: tuple[int, int] | None = None  # offset and bytes
    layout: ChunkLayout | None = None
    filters: Filters | None = None
    chunks: Chunks | None = None

    @property
    def is_group(self) -> bool:
        return (self.dtype, self.shape, self.place, self.layout, self.filters) == (None,) * 5


@dataclass
class Structure:
    """All objects by path (``""`` is the root), and the bytes that describe them: (offset, length), each of them
    under a checksum that has been checked."""

    nodes: dict[str, Node]
    described: list[tuple[int, int]]
    index_bytes: int = 0  # of these, those of the indices of chunks


def read_structure(fd: int, size: int) -> Structure:
    """The whole structure of an open file of ``size`` bytes.

    Errors: ``IntegrityError`` for anything that a file of a cache doesn't have, without the file's name.
    """
    block = os.pread(fd, SUPERBLOCK_BYTES, 0)
    if len(block) < SUPERBLOCK_BYTES or block[:8] != _SIGNATURE:
        raise IntegrityError("is no HDF5 file")
    if block[8:12] != b"\x03\x08\x08\x00" or lookup3(block[:44]) != u32(block, 44):
        raise IntegrityError("has a damaged superblock, or one of another version")
    base, extension, end, root = struct.unpack_from("<4Q", block, 12)
    if base != 0 or extension != 2**64 - 1:
        raise IntegrityError("has a superblock that shards don't have")
    if end != size:
        raise IntegrityError(f"has {size} bytes, its superblock says {end}: it is truncated or something was appended")
    structure = Structure({}, [(0, SUPERBLOCK_BYTES)])
    _walk(fd, size, root, "", structure)
    return structure


def _walk(fd: int, size: int, address: int, path: str, structure: Structure) -> None:
    """An object and, for a group, what it links to. Groups within groups are refused, so nothing can go round."""
    node = Node()
    structure.nodes[path] = node
    for kind, body in _messages(fd, size, address, structure):
        try:
            _take(node, kind, body)
        except (struct.error, IndexError, ValueError, OverflowError) as error:
            raise IntegrityError(f"has a message in /{path} that can't be read ({error})") from None
    if not node.is_group:
        if node.dtype is None or node.shape is None or (node.place is None) == (node.layout is None) or node.links:
            raise IntegrityError(f"holds /{path}, which is neither a group nor an array")
        if node.layout is not None:
            if node.layout.itemsize != node.dtype.itemsize:
                raise IntegrityError(f"holds /{path}, whose chunks are of another type")
            left = MAX_INDEX_BYTES - structure.index_bytes
            node.chunks, index = read_chunks(fd, size, node.layout, node.filters, node.shape, left)
            structure.index_bytes += sum(length for _, length in index)
            structure.described += index
        elif node.filters is not None:
            raise IntegrityError(f"has filters of /{path}, which is not chunked")
        return
    if "/" in path or len(structure.nodes) + len(node.links) > MAX_LINKS:
        raise IntegrityError(f"holds /{path}: groups within groups, or too many objects")
    for name, target in node.links.items():
        below = f"{path}/{name}" if path else name
        _walk(fd, size, target, below, structure)
        if path and structure.nodes[below].is_group:
            raise IntegrityError(f"holds /{below}: groups within groups")


def _messages(fd: int, size: int, address: int, structure: Structure) -> list[tuple[int, bytes]]:
    """(type, body) of an object header's messages, through its continuations."""
    start = read_at(fd, size, address, 10)
    # two bytes say the length of all headers that shards have
    if start[:5] != b"OHDR\x02" or start[5] & ~0x01:
        raise IntegrityError(f"has no object header of a known kind at {address}")
    width = 1 + start[5]
    chunks = [(address, 6 + width, int.from_bytes(start[6 : 6 + width], "little") + 6 + width + 4)]
    found: list[tuple[int, bytes]] = []
    for place, skip, whole in chunks:
        if whole > MAX_HEADER_BYTES or whole < skip + 4 or len(chunks) > MAX_PARTS:
            raise IntegrityError(f"has an object header of {whole} bytes at {place}")
        if whole + sum(length for _, length in structure.described) - structure.index_bytes > MAX_DESCRIBED_BYTES:
            raise IntegrityError("describes itself at greater length than any shard")
        data = read_at(fd, size, place, whole)
        if place != address and data[:4] != b"OCHK":
            raise IntegrityError(f"has no continuation of an object header at {place}")
        if lookup3(data[:-4]) != u32(data, whole - 4):
            raise IntegrityError(f"has an object header at {place} that doesn't match its checksum")
        structure.described.append((place, whole))
        at, end = skip, whole - 4
        while end - at >= 4:
            kind, count, flags = data[at], int.from_bytes(data[at + 1 : at + 3], "little"), data[at + 3]
            body = data[at + 4 : at + 4 + count]
            at += 4 + count
            if at > end or flags & 0x02:
                raise IntegrityError(f"has a message at {place} that is shared or too long")
            if kind == _CONTINUATION:
                target, bytes_ = struct.unpack("<2Q", body) if count == 16 else (0, 0)
                chunks.append((target, 4, bytes_))
            elif kind != _NIL:
                found.append((kind, body))
        if any(data[at:end]):
            raise IntegrityError(f"has bytes in an object header at {place} that belong to nothing")
    return found


def _take(node: Node, kind: int, body: bytes) -> None:
    if kind == _ATTRIBUTE:
        name, value = _attribute(body)
        if name in node.attributes:
            raise IntegrityError(f"has attribute {name!r} twice")
        node.attributes[name] = value
    elif kind == _LINK:
        if body[:2] != b"\x01\x00" or len(body) != 11 + body[2]:
            raise IntegrityError("has a link that is not hard: soft and external links are not followed")
        name = body[3:-8].decode("ascii")
        if name in node.links or not re.fullmatch(r"[A-Za-z0-9_\-]+", name):
            raise IntegrityError(f"has a link {name!r} twice, or by a name that no array has")
        node.links[name] = struct.unpack("<Q", body[-8:])[0]
    elif kind == _DATATYPE and node.dtype is None:
        node.dtype = _dtype(body)
    elif kind == _DATASPACE and node.shape is None:
        node.shape = _shape(body)
    elif kind == _LAYOUT and node.place is None and node.layout is None:
        if body[1] == _CHUNKED:
            node.layout = parse_layout(body)
            return
        if body[0] not in (3, 4) or body[1] != 1:
            raise IntegrityError(f"has an array that is {_LAYOUTS.get(body[1], 'oddly')} stored, not contiguous")
        if len(body) != 18 or (body[2:10] == _UNDEFINED) != (body[10:18] == bytes(8)):
            raise IntegrityError("has an array without bytes")
        node.place = (0, 0) if body[2:10] == _UNDEFINED else struct.unpack_from("<2Q", body, 2)  # 0: no numbers
    elif kind == _FILTERS and node.filters is None:
        node.filters = parse_filters(body)
    elif kind in (_LINK_INFO, _ATTRIBUTE_INFO):
        if body != b"\0\0" + _UNDEFINED * 2:
            raise IntegrityError("has links or attributes in a heap")
    elif kind not in (_FILL, _GROUP_INFO):
        raise IntegrityError(f"has {_REFUSED.get(kind, f'a message of type {kind} that shards do not have')}")


def _attribute(body: bytes) -> tuple[str, int | str]:
    version, flags, names, types, spaces, _ = struct.unpack_from("<BBHHHB", body)
    if version != 3 or flags:
        raise IntegrityError("has an attribute of another version")
    at = 9 + names
    name = body[9:at].rstrip(b"\0").decode("ascii")
    dtype, space = _dtype(body[at : at + types]), _shape(body[at + types : at + types + spaces])
    data = body[at + types + spaces :]
    if space != () or len(data) != dtype.itemsize or dtype.kind not in "iuS":
        raise IntegrityError(f"has an attribute {name!r} that is not one number or text of fixed length")
    if dtype.kind == "S":
        return name, data.rstrip(b"\0").decode("utf-8")
    return name, int.from_bytes(data, "little", signed=dtype.kind == "i")


def _dtype(body: bytes) -> np.dtype:
    """Little-endian integers and IEEE floats, and null-padded text; any version of the message says these alike."""
    kind, bits, size = body[0] & 0x0F, int.from_bytes(body[1:4], "little"), u32(body, 4)
    if 1 <= body[0] >> 4 <= 4:
        if kind == 0 and bits in (0, 8) and size in (1, 2, 4, 8) and body[8:] == struct.pack("<HH", 0, 8 * size):
            return np.dtype(f"<{'i' if bits else 'u'}{size}")
        if kind == 1 and size in _FLOATS and bits == (_FLOAT_SIGN[size] << 8 | 0x20) and body[8:] == _FLOATS[size]:
            return np.dtype(f"<f{size}")
        if kind == 3 and bits == 1 and 0 < size < 1 << 16 and len(body) == 8:
            return np.dtype(f"S{size}")
    raise IntegrityError("has a type that is no little-endian number and no text of fixed length")


def _shape(body: bytes) -> tuple[int, ...]:
    version, rank, flags, kind = body[:4]
    if version != 2 or rank > 32 or kind != (1 if rank else 0) or len(body) != 4 + 8 * rank * (2 if flags else 1):
        raise IntegrityError("has a shape of an unknown kind")
    sizes = struct.unpack_from(f"<{rank}Q", body, 4)
    if flags not in (0, 1) or (flags and sizes != struct.unpack_from(f"<{rank}Q", body, 4 + 8 * rank)):
        raise IntegrityError("has a shape that can grow")
    return sizes
