"""Shards in a cache's folder that its manifest doesn't ask for: what ``softcache trim`` removes.

Links are not followed: a view's folder that is a link is refused, and of a shard that is a link the link is removed.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from softcache.atomic import sync_folder
from softcache.cache.schema import COLUMN
from softcache.errors import CacheError

_VIEW = re.compile(r"view-(\d{4,5})")
_CONSTANTS = re.compile(rf"column-({COLUMN.pattern})\.h5")
_SHARD = re.compile(rf"({COLUMN.pattern})-(\d{{5,7}})\.h5")


@dataclass(frozen=True)
class Surplus:
    """A file ``name`` in the folder ``view-NNNN`` of a view, named like the shard ``number`` of ``column``."""

    view: int
    column: str
    number: int
    name: str
    bytes: int

    @property
    def path(self) -> str:
        """Relative to the cache's folder."""
        return f"{_folder_name(self.view)}/{self.name}"


def find_surplus(folder: Path, views: int, columns: Collection[str]) -> list[Surplus]:
    """Files named like shards that lie beyond the first ``views`` views or belong to none of ``columns``.

    Errors: ``CacheError`` where a view's folder is a link.
    """
    return [file for file in _shards(folder) if file.view >= views or file.column not in columns]


def surplus_constants(folder: Path, columns: Collection[str]) -> list[Path]:
    """Files of constants of codecs that belong to none of ``columns``."""
    found = ((path, _CONSTANTS.fullmatch(path.name)) for path in sorted(folder.glob("column-*.h5")))
    return [path for path, match in found if match and match[1].replace("@", ":") not in columns]


def remove_surplus(folder: Path, surplus: list[Surplus]) -> None:
    """Removes these files, and the folders of views that are empty then."""
    for view in sorted({file.view for file in surplus}, reverse=True):
        with _opened(folder, view) as fd:
            for file in surplus:
                if file.view == view:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(file.name, dir_fd=fd)
            os.fsync(fd)
            empty = not os.listdir(fd)
        if empty:
            os.rmdir(folder / _folder_name(view))
    sync_folder(folder)


def remove_empty_views(folder: Path, views: int) -> None:
    """Removes folders of views beyond the first ``views`` that are empty, as a writer that was killed leaves them."""
    for view, empty in _views(folder):
        if view >= views and empty:
            os.rmdir(folder / _folder_name(view))


def _shards(folder: Path) -> Iterator[Surplus]:
    for view, empty in _views(folder):
        if empty:
            continue
        with _opened(folder, view) as fd:
            for name in sorted(os.listdir(fd)):
                match = _SHARD.fullmatch(name)
                if match:
                    size = os.stat(name, dir_fd=fd, follow_symlinks=False).st_size
                    yield Surplus(view, match[1].replace("@", ":"), int(match[2]), name, size)


def _views(folder: Path) -> Iterator[tuple[int, bool]]:
    """Views that have a folder, and whether it is empty."""
    for name in sorted(os.listdir(folder)):
        match = _VIEW.fullmatch(name)
        if match and name == _folder_name(int(match[1])):
            with _opened(folder, int(match[1])) as fd:
                yield int(match[1]), not os.listdir(fd)


@contextlib.contextmanager
def _opened(folder: Path, view: int) -> Iterator[int]:
    path = folder / _folder_name(view)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise CacheError(
            f"{path} is a link or no folder ({error.strerror}), and softcache removes nothing behind links: replace it "
            "by the folder itself, or remove it by hand"
        ) from None
    try:
        yield fd
    finally:
        os.close(fd)


def _folder_name(view: int) -> str:
    return f"view-{view:04d}"
