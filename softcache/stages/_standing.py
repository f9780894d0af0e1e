"""What is said of a cache that is being written when that ends before its time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from softcache.atomic import why_full
from softcache.cache.reader import Cache
from softcache.cache.writer import plan
from softcache.console import advising
from softcache.errors import CacheError, SoftcacheError


@contextlib.contextmanager
def told(folder: Path) -> Iterator[None]:
    """Says where the writing of a cache stands when it ends before its time; a full disk is one clear error.

    Errors: ``CacheError`` where the disk is full.
    """
    try:
        with advising(lambda: f"{_standing(folder)}: run the same command again to go on"):
            yield
    except OSError as error:
        why = why_full(error)
        if why is None:
            raise
        raise CacheError(
            f"disk full at {folder} ({why}); {_standing(folder)}: free space and run the same command again"
        ) from error


def _standing(folder: Path) -> str:
    try:
        cache = Cache(folder)
        left = sum(block.rows for block in plan(cache, cache.views, cache.manifest.columns))
    except (SoftcacheError, OSError):
        return "nothing had been computed yet"
    total = cache.rows * cache.views
    return f"{total - left:,} of {total:,} keys are in {folder} and stay valid"
