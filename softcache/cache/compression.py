"""How the numbers of a column are compressed, where they are: ``zstd:level=1,rows=256,shuffle=byte``.

The arrays of a codec are cut into chunks along their rows, and each chunk is compressed by itself, so that a row can be
read without those of other chunks.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from softcache import registry
from softcache.cache.chunk_frames import Chunking
from softcache.cache.chunk_index import MAX_CHUNKS
from softcache.cache.extents import Arrays
from softcache.cache.schema import MAX_SHARD_BYTES
from softcache.errors import UsageError, nearest

NAME = "zstd"
SHUFFLES = ("byte", "none")
MAX_LEVEL = 19  # beyond it zstd takes more memory than a reader should have to give
MIN_CHUNK_BYTES = MAX_SHARD_BYTES // MAX_CHUNKS
MAX_CHUNK_BYTES = 16 * 2**20  # of more than one row
DEFAULT_CHUNK_BYTES = 2**16  # of the widest array; see docs/codecs.md for what other sizes give


@dataclass(frozen=True)
class Zstd:
    """``level``: of zstd, 1 to 19. ``rows``: of a chunk of the array that has the most bytes a row, a power of two; of
    a ragged column these are places; None: as ``settled`` chooses. ``shuffle``: ``byte``, or ``none``."""

    level: int = 1
    rows: int | None = None
    shuffle: str = "byte"

    def __post_init__(self) -> None:
        if not 1 <= self.level <= MAX_LEVEL:
            raise UsageError(f"level={self.level}: zstd has the levels 1 to {MAX_LEVEL} here")
        if self.rows is not None and not (0 < self.rows <= 2**30 and self.rows & (self.rows - 1) == 0):
            raise UsageError(f"rows={self.rows} is not a power of two")
        if self.shuffle not in SHUFFLES:
            raise UsageError(f"shuffle={self.shuffle} is unknown{nearest(self.shuffle, SHUFFLES)}")

    def settled(self, row: Arrays) -> Zstd:
        """With every option chosen. ``row``: of one row, what the codec keeps: name → dtype and shape.

        Errors: ``UsageError`` where chunks of so many rows are too small or too large.
        """
        found = self
        if self.rows is None:
            rows, widest = 1, _widest(row)
            while 2 * rows * widest <= DEFAULT_CHUNK_BYTES:
                rows *= 2
            found = dataclasses.replace(self, rows=rows)
        found.chunking(row)
        return found

    def chunking(self, row: Arrays) -> dict[str, Chunking]:
        """How each array of a column is kept, where every option is chosen. An array that has fewer bytes a row than
        the widest has chunks of twice as many rows, or four times, …, as long as they aren't larger than the widest's.

        Errors: as ``settled``.
        """
        assert self.rows is not None
        widest = _widest(row)
        size = self.rows * widest
        if size < MIN_CHUNK_BYTES:
            least = 1 << (-(-MIN_CHUNK_BYTES // widest) - 1).bit_length()
            raise UsageError(f"rows={self.rows}: chunks of {size:,} bytes are too small: at least rows={least}")
        if size > MAX_CHUNK_BYTES and self.rows > 1:
            most = max(1, 1 << (MAX_CHUNK_BYTES // widest).bit_length() - 1) if widest <= MAX_CHUNK_BYTES else 1
            raise UsageError(f"rows={self.rows}: chunks of {size:,} bytes are too large: at most rows={most}")
        found = {}
        for name, (dtype, shape) in row.items():
            own = _row_bytes(dtype, shape)
            if not own:
                continue  # numbers of no bytes are kept as they are
            rows = self.rows
            while 2 * rows * own <= size:
                rows *= 2
            found[name] = Chunking(rows, self.shuffle == "byte" and np.dtype(dtype).itemsize > 1, self.level)
        return found


def parse_compression(spec: str) -> Zstd:
    """``zstd``, ``zstd:level=3``, ``zstd:rows=64,shuffle=none``.

    Errors: ``UsageError`` for another name, an unknown option or a value that can't be.

    >>> parse_compression("zstd:level=3")
    Zstd(level=3, rows=None, shuffle='byte')
    """
    name, rest = registry.split_spec(spec)
    if name != NAME:
        raise UsageError(f"--compress {spec}: {name!r} is unknown: there is {NAME}, such as {NAME}:level=3")
    return Zstd(**registry.typed_options(Zstd, registry.parse_options(rest, spec), f"--compress {spec}"))


def settled_compression(spec: str | None, row: Arrays) -> str | None:
    """How a manifest records what ``spec`` asks for, of a column that keeps ``row`` of one row; None for none.

    Errors: as ``parse_compression`` and ``Zstd.settled``.

    >>> settled_compression("zstd", {"values": ("<f2", (1, 100))})
    'zstd:level=1,rows=256,shuffle=byte'
    """
    if spec is None:
        return None
    return registry.canonical(NAME, parse_compression(spec).settled(row))


def is_asked_compression(spec: str, recorded: str | None) -> bool:
    """Whether what a manifest records is what ``spec`` asks for, whose open options may have been chosen in any way.

    >>> is_asked_compression("zstd", "zstd:level=1,rows=256,shuffle=byte"), is_asked_compression("zstd", None)
    (True, False)
    """
    if recorded is None:
        return False
    ours, theirs = parse_compression(spec), parse_compression(recorded)
    return ours.rows in (None, theirs.rows) and dataclasses.replace(ours, rows=theirs.rows) == theirs


def recorded_chunking(recorded: str | None, row: Arrays) -> Mapping[str, Chunking]:
    """How each array of a column is compressed by what its manifest records; of one that isn't, none.

    Errors: ``UsageError`` for what no column can have.
    """
    if recorded is None:
        return {}
    found = parse_compression(recorded)
    if registry.canonical(NAME, found) != recorded or found.rows is None:
        raise UsageError(f"{recorded!r} is not how a manifest records a compression")
    return found.chunking(row)


def _row_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape[1:]) * np.dtype(dtype).itemsize


def _widest(row: Arrays) -> int:
    return max(1, *(_row_bytes(*spec) for spec in row.values()))
