"""One chunk of a compressed array: its numbers as a frame of zstd, and back with nothing taken on trust.

A frame says how many bytes it holds and how much memory it takes to read. Both are compared with what the chunk must
be before anything is decompressed, and a checksum in the frame is compared after.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from softcache.errors import IntegrityError
from softcache.extras import missing_extra

FRAME_BYTES = 64  # that a frame may have beside its numbers, whatever they are, and a 256th of them


@dataclass(frozen=True)
class Chunking:
    """How one array is cut and compressed: chunks of ``rows`` rows, or of all that there are; whether the bytes of its
    numbers are sorted by their place in a number, ``shuffle``; zstd's ``level``."""

    rows: int
    shuffle: bool
    level: int


def zstandard() -> Any:
    """The package. Errors: ``MissingExtraError`` where it isn't installed."""
    try:
        import zstandard
    except ImportError:
        raise missing_extra("a compressed column needs zstandard", "compress") from None
    return zstandard


def most_stored(nbytes: int) -> int:
    """Bytes of the largest frame of so many bytes: zstd adds less where nothing can be compressed."""
    return nbytes + nbytes // 256 + FRAME_BYTES


def encoder(level: int) -> Callable[[np.ndarray, bool], bytes]:
    """A function from a chunk's numbers, and whether their bytes are shuffled, to a frame. One for each thread."""
    package = zstandard()
    compressor = package.ZstdCompressor(level=level, write_checksum=True, write_content_size=True)

    def encode(values: np.ndarray, shuffle: bool) -> bytes:
        plain = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        if not shuffle:
            frame: bytes = compressor.compress(plain.data)
            return frame
        # A block of zstd has one code for all of its bytes: those of another place in a number begin a new one.
        stream, pieces = compressor.compressobj(size=plain.nbytes), []
        for place in range(values.itemsize):
            alike = np.ascontiguousarray(plain[place :: values.itemsize])
            pieces += [stream.compress(alike.data), stream.flush(package.COMPRESSOBJ_FLUSH_BLOCK)]
        return b"".join([*pieces, stream.flush()])

    return encode


def decode(frame: Any, out: np.ndarray, shuffle: bool) -> None:
    """Writes a chunk's numbers into ``out``, of any shape, which is contiguous and of the chunk's size.

    ``frame``: bytes, or anything with a buffer. Errors: ``IntegrityError``, without the file's name, where these are
    not one frame of this very size, or don't match the frame's checksum.
    """
    package = zstandard()
    nbytes = out.nbytes
    try:
        said = package.get_frame_parameters(frame)
        if (said.content_size, said.dict_id, said.has_checksum) != (nbytes, 0, True):
            raise IntegrityError(f"has a chunk that is not one of {nbytes} bytes and a checksum")
        if said.window_size > max(nbytes, 1024):
            raise IntegrityError(f"has a chunk that takes {said.window_size} bytes of memory to read, not {nbytes}")
        data = _decompressor(package).decompress(frame, max_output_size=nbytes, allow_extra_data=False)
    except package.ZstdError as error:
        raise IntegrityError(f"has a damaged chunk ({' '.join(str(error).split())[:80]})") from None
    if len(data) != nbytes:
        raise IntegrityError(f"has a chunk of {len(data)} bytes, not {nbytes}")
    plain, target = np.frombuffer(data, np.uint8), out.reshape(-1)
    if not shuffle:
        target.view(np.uint8)[:] = plain
    elif out.itemsize == 2:  # twice as fast as byte by byte
        low, high = plain.reshape(2, -1)
        words = target.view(np.uint16)
        words[:] = high
        words *= 256
        words += low
    else:
        places = target.view(np.uint8).reshape(-1, out.itemsize)
        for place, alike in enumerate(plain.reshape(out.itemsize, -1)):
            places[:, place] = alike


_held = threading.local()


def _decompressor(package: Any) -> Any:
    """This thread's: one can't be used by two at a time."""
    if not hasattr(_held, "decompressor"):
        _held.decompressor = package.ZstdDecompressor()
    return _held.decompressor
