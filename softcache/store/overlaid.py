"""A store of which some files are others."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NoReturn

from softcache.store.local import Local
from softcache.store.store import Store


class Overlaid:
    """Reads ``below``, which has files of these ``sizes``, but for files that ``above`` has, and without those in
    ``hidden``. Nothing can be stored."""

    exclusive = False

    def __init__(self, below: Store, sizes: Mapping[str, int], above: Local, hidden: Collection[str]):
        self.where = below.where
        self._below, self._sizes, self._above, self._hidden = below, sizes, above, hidden

    def files(self) -> dict[str, int]:
        found = {**self._sizes, **self._above.files()}
        return {name: size for name, size in found.items() if name not in self._hidden}

    def size(self, name: str) -> int | None:
        return None if name in self._hidden else self._of(name).size(name)

    def read(self, name: str, most: int) -> bytes | None:
        return None if name in self._hidden else self._of(name).read(name, most)

    def get(self, name: str, to: Path, size: int) -> str:
        return self._of(name).get(name, to, size)

    def sha256(self, name: str, size: int) -> str | None:
        return None if name in self._hidden else self._of(name).sha256(name, size)

    def put(self, name: str, file: Path, sha256: str) -> None:
        self._refuse()

    def write(self, name: str, content: bytes) -> None:
        self._refuse()

    def create(self, name: str, content: bytes) -> bool:
        self._refuse()

    def delete(self, name: str) -> None:
        self._refuse()

    def _of(self, name: str) -> Store:
        return self._above if self._above.size(name) is not None else self._below

    def _refuse(self) -> NoReturn:
        raise AssertionError("it is only read")
