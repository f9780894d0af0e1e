"""An object store through fsspec: ``s3://``, ``gs://``, ``az://``, ``hf://``."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from softcache.addresses import Address
from softcache.errors import IntegrityError, StoreError
from softcache.extras import missing_extra
from softcache.store.retry import Patience, persistently
from softcache.store.store import PIECE, write_pieces

T = TypeVar("T")
# scheme → the package that speaks it, the extra that brings it, and options of its file system
PACKAGES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "s3": (
        "s3fs",
        "s3",
        {"config_kwargs": {"connect_timeout": 20, "read_timeout": 60, "retries": {"total_max_attempts": 1}}},
    ),
    "gs": ("gcsfs", "gcs", {}),
    "az": ("adlfs", "az", {}),
    "hf": ("huggingface_hub", "hf", {}),
}
# What a store promises of a file that is made only where there is none: two writers can't both make it.
EXCLUSIVE = ("s3", "gs", "memory")
S3_PART = 16 * 2**20  # bytes; of larger files so many parts are sent at once
S3_PARTS_AT_ONCE = 4


class Fsspec:
    """Files below ``root`` of an fsspec file system, which ``opened`` gives once in each process: such file systems
    don't survive a fork."""

    def __init__(self, opened: Callable[[], Any], root: str, where: str, scheme: str, patience: Patience | None = None):
        self.where = where
        self.exclusive = scheme in EXCLUSIVE
        self._open, self._root, self._scheme = opened, root.rstrip("/"), scheme
        self._patience = patience or Patience()
        self._system: tuple[int, Any] | None = None

    @classmethod
    def at(cls, address: Address, patience: Patience | None = None) -> Fsspec:
        """Errors: ``MissingExtraError`` that names the extra where a package is missing."""
        package, extra, _ = PACKAGES[address.scheme]
        try:
            import fsspec

            fsspec.get_filesystem_class(address.scheme)
        except ImportError:
            raise missing_extra(f"{address.scheme}:// needs {package}", extra) from None

        opened = functools.partial(_opened, address.scheme)
        return cls(opened, address.path, str(address), address.scheme, patience)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_system": None}

    def files(self) -> dict[str, int]:
        def listed() -> dict[str, int]:
            try:
                found = self._fs.find(self._root, detail=True)
            except FileNotFoundError:
                return {}
            names = {self._name(path): int(info["size"]) for path, info in found.items() if info["type"] == "file"}
            return {name: size for name, size in names.items() if name}

        return self._persistently(listed, "listing", "")

    def size(self, name: str) -> int | None:
        with contextlib.suppress(FileNotFoundError):
            return int(self._persistently(lambda: self._fs.info(self._path(name))["size"], "looking for", name))
        return None

    def read(self, name: str, most: int) -> bytes | None:
        size = self.size(name)
        if size is None:
            return None
        if size > most:
            raise IntegrityError(f"{self.where}/{name} has {size:,} bytes, more than the {most:,} that it may have")
        pieces = [self._piece(name, first, min(first + PIECE, size)) for first in range(0, size, PIECE)]
        return b"".join(pieces)

    def get(self, name: str, to: Path, size: int) -> str:
        places = range(0, size, PIECE)
        return write_pieces(to, (self._piece(name, at, min(at + PIECE, size)) for at in places))

    def put(self, name: str, file: Path, sha256: str) -> None:
        options = {"chunksize": S3_PART, "max_concurrency": S3_PARTS_AT_ONCE} if self._scheme == "s3" else {}
        size = file.stat().st_size
        self._storing(lambda: self._fs.put_file(str(file), self._path(name), **options), name)
        if self.sha256(name, size) != sha256:
            raise IntegrityError(f"{self.where}/{name}: other bytes arrived than were sent: run the same command again")

    def write(self, name: str, content: bytes) -> None:
        self._storing(lambda: self._fs.pipe_file(self._path(name), content), name)

    def create(self, name: str, content: bytes) -> bool:
        if not self.exclusive and self.size(name) is not None:
            return False
        options = {"mode": "create"} if self.exclusive else {}

        def made() -> bool:
            try:
                self._fs.pipe_file(self._path(name), content, **options)
            except FileExistsError:
                # An attempt whose answer was lost may have made it.
                return self._fs.cat_file(self._path(name)) == content
            return True

        return self._storing(made, name)

    def sha256(self, name: str, size: int) -> str | None:
        if self.size(name) != size:
            return None
        digest = hashlib.sha256()
        for first in range(0, size, PIECE):
            digest.update(self._piece(name, first, min(first + PIECE, size)))
        return digest.hexdigest()

    def delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._persistently(lambda: self._fs.rm_file(self._path(name)), "removing", name)

    def _piece(self, name: str, first: int, last: int) -> bytes:
        """Bytes ``first ...`` to before ``last``. An answer that ends early is asked for again."""

        def read() -> bytes:
            piece = self._fs.cat_file(self._path(name), start=first, end=last)
            if len(piece) < last - first:
                raise EOFError(f"{len(piece):,} of {last - first:,} bytes came")
            return bytes(piece[: last - first])

        try:
            return self._persistently(read, "reading", name)
        except FileNotFoundError:
            raise IntegrityError(f"{self.where}/{name} is missing") from None

    def _persistently(self, do: Callable[[], T], doing: str, name: str) -> T:
        return persistently(do, f"{doing} {self.where}/{name}".rstrip("/"), self._patience)

    def _storing(self, do: Callable[[], T], name: str) -> T:
        try:
            return self._persistently(do, "storing", name)
        except FileNotFoundError:  # folders are made by what is stored in them, but not what they lie in
            raise StoreError(f"{self.where}: there is no such bucket, container or repository: make it first") from None

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _name(self, path: str) -> str:
        return path.lstrip("/").removeprefix(self._root.lstrip("/") + "/")

    @property
    def _fs(self) -> Any:
        if self._system is None or self._system[0] != os.getpid():
            self._system = os.getpid(), self._open()
        return self._system[1]


def _opened(scheme: str) -> Any:
    import fsspec

    # Listings that are kept would hide what another process has stored meanwhile.
    made = fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False, **PACKAGES[scheme][2])
    if hasattr(made, "retries"):
        made.retries = 1  # ``persistently`` tries again, and its waits would multiply with those of the package
    return made
