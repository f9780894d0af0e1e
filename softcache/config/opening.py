"""Opens a cache that a user names: a folder, its name in ``caches/``, or the address of one in an object store."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from softcache.addresses import is_address, without_secret
from softcache.cache.listing import check_expected
from softcache.cache.pinned import Pinned
from softcache.cache.reader import Cache
from softcache.cache.remote import Remote
from softcache.config.folders import pick_cache
from softcache.errors import UsageError
from softcache.localfiles import cache_folder, local_path
from softcache.store.kept import Kept
from softcache.store.opened import open_store

LOCAL_SIZE = "50GB"
STORES = "softcache-stores"  # the folder within --local-cache
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kMGT]?)(i?)B?", re.ASCII)
_PREFIXES = ("", "k", "M", "G", "T")


def bytes_of(text: str, option: str) -> int:
    """A size in bytes.

    >>> bytes_of("50GB", "--size"), bytes_of("1.5 GiB", "--size"), bytes_of("4096", "--size")
    (50000000000, 1610612736, 4096)

    Errors: ``UsageError`` that names ``option``.
    """
    match = _SIZE.fullmatch(text.strip())
    count = float(match[1]) * (1024 if match[3] else 1000) ** _PREFIXES.index(match[2]) if match else 0
    if count < 1:
        raise UsageError(f"{option} {text} must be a size, such as 50GB or 200MiB")
    return int(count)


@dataclass(frozen=True)
class Opening:
    """``expect``: pins, one of which each cache must have. ``local_cache``: the folder for files of stores, by default
    one in the user's cache folder, and ``local_size`` what it may grow to."""

    expect: tuple[str, ...] = ()
    local_cache: str | None = None
    local_size: str = LOCAL_SIZE

    def open(
        self,
        name: str | None,
        *,
        option: str = "the cache",
        verify_reads: bool = False,
        codec: str | None = None,
    ) -> Cache:
        """``name``: what the user named, by default the only cache in ``caches/``; ``option``: with which option.

        Errors: ``CacheError`` where there is no cache, or several and none was named; ``IntegrityError`` where it is
        another than expected; those of ``Remote``.
        """
        check_expected(self.expect)
        if name is None or not is_address(name):
            folder = pick_cache(name, option=option)
            pinned = Pinned(folder, self.expect) if self.expect else None
            return Cache(folder, verify_reads=verify_reads, codec=codec, pinned=pinned)
        store = open_store(without_secret(name), option)
        remote = Remote(store, Kept.of(self.folder, bytes_of(self.local_size, "--local-size")), self.expect)
        return Cache(remote.folder, verify_reads=verify_reads, codec=codec, remote=remote)

    @property
    def folder(self) -> Path:
        """Where files of stores are kept on this machine."""
        if self.local_cache is None:
            return cache_folder() / "stores"
        # in a folder of its own, so that nothing that the user has there can be taken for a file from a store
        return local_path(self.local_cache, "--local-cache") / STORES
