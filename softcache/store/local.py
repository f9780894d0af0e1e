"""A folder of this machine as a store."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from softcache.atomic import commit, is_temporary, make_folder_within, replace_file, temporary_path
from softcache.errors import IntegrityError
from softcache.store.store import PIECE


class Local:
    """Files below ``folder``, which need not exist before something is stored. Temporary files are not among them."""

    exclusive = True

    def __init__(self, folder: Path):
        self.folder = folder
        self.where = str(folder)

    def path(self, name: str) -> Path:
        return self.folder / name

    def files(self) -> dict[str, int]:
        found = {}
        for folder, _, names in os.walk(self.folder):
            for name in names:
                path = Path(folder, name)
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile, or a link to nothing
                    if not is_temporary(name) and path.is_file():
                        found[path.relative_to(self.folder).as_posix()] = path.stat().st_size
        return found

    def size(self, name: str) -> int | None:
        try:
            return self.path(name).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read(self, name: str, most: int) -> bytes | None:
        try:
            with _opened(self.path(name)) as fd:
                content = b""
                while len(content) <= most and (piece := os.read(fd, most + 1 - len(content))):
                    content += piece
        except (FileNotFoundError, NotADirectoryError):
            return None
        if len(content) > most:
            raise IntegrityError(f"{self.path(name)} has more than the {most:,} bytes that such a file may have")
        return content

    def get(self, name: str, to: Path, size: int) -> str:
        path, digest, left = self.path(name), hashlib.sha256(), size
        try:
            with _opened(path) as fd, open(to, "xb") as target:
                while piece := os.read(fd, min(PIECE, left + 1)):
                    left -= len(piece)
                    if left < 0:
                        break
                    digest.update(piece)
                    target.write(piece)
                target.flush()
                os.fsync(target.fileno())
            if left:
                raise IntegrityError(f"{path} doesn't have the {size:,} bytes that it should have")
        except BaseException:
            to.unlink(missing_ok=True)
            raise
        return digest.hexdigest()

    def put(self, name: str, file: Path, sha256: str) -> None:
        final = self.path(name)
        self._make_folder(final.parent)
        part = temporary_path(final)
        try:
            with open(file, "rb") as source, open(part, "xb") as target:
                shutil.copyfileobj(source, target, PIECE)
                target.flush()
                os.fsync(target.fileno())
            if sha256_of(part) != sha256:
                raise IntegrityError(f"{final}: other bytes arrived than were sent: run the same command again")
            commit(part, final)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def take(self, name: str, part: Path) -> None:
        """Gives a file that ``temporary`` named, and that is whole, its name."""
        commit(part, self.path(name))

    def temporary(self, name: str) -> Path:
        """Where a file may be written before ``take``."""
        self._make_folder(self.path(name).parent)
        return temporary_path(self.path(name))

    def write(self, name: str, content: bytes) -> None:
        self._make_folder(self.path(name).parent)
        replace_file(self.path(name), content)

    def create(self, name: str, content: bytes) -> bool:
        self._make_folder(self.path(name).parent)
        try:
            with open(self.path(name), "xb") as file:
                file.write(content)
        except FileExistsError:
            return False
        return True

    def sha256(self, name: str, size: int) -> str | None:
        return sha256_of(self.path(name)) if self.size(name) == size else None

    def delete(self, name: str) -> None:
        self.path(name).unlink(missing_ok=True)

    def _make_folder(self, folder: Path) -> None:
        if folder == self.folder:
            folder.mkdir(parents=True, exist_ok=True)
        elif not folder.is_dir() or folder.is_symlink():
            self.folder.mkdir(parents=True, exist_ok=True)
            make_folder_within(folder)


def sha256_of(path: Path) -> str:
    """That of a regular file. Errors: ``IntegrityError`` for a pipe or a device."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(2**20))
    with _opened(path) as fd:
        while count := os.readv(fd, [buffer]):
            digest.update(buffer[:count])
    return digest.hexdigest()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise IntegrityError(f"{path} is no regular file")
        yield fd
    finally:
        os.close(fd)
