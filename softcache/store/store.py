"""What every store of files can do, whether it is a folder or on another machine."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

PIECE = 8 * 2**20  # bytes that are read from a store at once, and all of it that is in memory


class Store(Protocol):
    """Files by names such as ``view-0000/logits-00000.h5``. A file is there whole or not at all.

    ``where``: how messages call it. ``exclusive``: whether ``create`` is sure that nobody else made the file.

    Errors of all methods: ``StoreError`` in one line where the store can't be reached or refuses.
    """

    where: str
    exclusive: bool

    def files(self) -> dict[str, int]:
        """All files and their sizes in bytes; none where there is no such folder."""
        ...

    def size(self, name: str) -> int | None:
        """A file's size in bytes; None where it isn't there."""
        ...

    def read(self, name: str, most: int) -> bytes | None:
        """A small file; None where it isn't there. Errors: ``IntegrityError`` where it has more than ``most`` bytes."""
        ...

    def get(self, name: str, to: Path, size: int) -> str:
        """Writes a file that has ``size`` bytes to ``to``, which must not exist, and flushes it; never a byte more.

        Result: its sha256. Errors: ``IntegrityError`` where it has another size, ``to`` then doesn't exist.
        """
        ...

    def put(self, name: str, file: Path, sha256: str) -> None:
        """Stores a local file, replacing the one of that name, and reads it back.

        Errors: ``IntegrityError`` where another sha256 arrived than that.
        """
        ...

    def write(self, name: str, content: bytes) -> None:
        """Stores a small file, replacing the one of that name."""
        ...

    def create(self, name: str, content: bytes) -> bool:
        """Stores a small file where there is none of that name; returns whether it did."""
        ...

    def sha256(self, name: str, size: int) -> str | None:
        """That of a file, read from the store; None where it isn't there or has another size."""
        ...

    def delete(self, name: str) -> None:
        """Removes a file; nothing happens where it isn't there."""
        ...


def write_pieces(to: Path, pieces: Iterable[bytes]) -> str:
    """Writes a new file, onto the disk; returns its sha256. Nothing is left where that fails."""
    digest = hashlib.sha256()
    try:
        with open(to, "xb") as target:
            for piece in pieces:
                digest.update(piece)
                target.write(piece)
            target.flush()
            os.fsync(target.fileno())
    except BaseException:
        to.unlink(missing_ok=True)
        raise
    return digest.hexdigest()
