"""Bytes of an HDF5 file's structure, and the checksum that HDF5 keeps over them.

Source: the checksum is Bob Jenkins' lookup3 (2006).
"""

from __future__ import annotations

import os
import struct

from softcache.errors import IntegrityError

_MASK = 0xFFFFFFFF


def lookup3(data: bytes) -> int:
    """Jenkins' ``hashlittle`` with seed 0: the checksum of HDF5's metadata."""
    length, at = len(data), 0
    a = b = c = (0xDEADBEEF + length) & _MASK
    while length - at > 12:
        x, y, z = struct.unpack_from("<3I", data, at)
        a, b, c, at = (a + x) & _MASK, (b + y) & _MASK, (c + z) & _MASK, at + 12
        a = ((a - c) & _MASK) ^ _rotate(c, 4)
        c = (c + b) & _MASK
        b = ((b - a) & _MASK) ^ _rotate(a, 6)
        a = (a + c) & _MASK
        c = ((c - b) & _MASK) ^ _rotate(b, 8)
        b = (b + a) & _MASK
        a = ((a - c) & _MASK) ^ _rotate(c, 16)
        c = (c + b) & _MASK
        b = ((b - a) & _MASK) ^ _rotate(a, 19)
        a = (a + c) & _MASK
        c = ((c - b) & _MASK) ^ _rotate(b, 4)
        b = (b + a) & _MASK
    if at == length:
        return c
    x, y, z = struct.unpack("<3I", data[at:].ljust(12, b"\0"))
    a, b, c = (a + x) & _MASK, (b + y) & _MASK, (c + z) & _MASK
    c = ((c ^ b) - _rotate(b, 14)) & _MASK
    a = ((a ^ c) - _rotate(c, 11)) & _MASK
    b = ((b ^ a) - _rotate(a, 25)) & _MASK
    c = ((c ^ b) - _rotate(b, 16)) & _MASK
    a = ((a ^ c) - _rotate(c, 4)) & _MASK
    b = ((b ^ a) - _rotate(a, 14)) & _MASK
    return ((c ^ b) - _rotate(b, 24)) & _MASK


def read_at(fd: int, size: int, address: int, length: int) -> bytes:
    """Bytes of an open file of ``size`` bytes. Errors: ``IntegrityError`` where the file has none there."""
    if address + length > size:
        raise IntegrityError(f"says that something lies at {address}, beyond its end")
    data = os.pread(fd, length, address)
    if len(data) != length:
        raise IntegrityError("has been truncated")
    return data


def u32(data: bytes, at: int) -> int:
    """The little-endian number of four bytes at a place."""
    return int(struct.unpack_from("<I", data, at)[0])


def _rotate(value: int, bits: int) -> int:
    return ((value << bits) | (value >> (32 - bits))) & _MASK
