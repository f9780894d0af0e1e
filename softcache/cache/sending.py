"""One file of a cache from one store to another, compared on arrival."""

from __future__ import annotations

import shutil
from pathlib import Path

from softcache.atomic import temporary_path
from softcache.cache.listing import LISTING, Listed
from softcache.console import decimal_size
from softcache.errors import IntegrityError, StoreError
from softcache.store.local import Local, sha256_of
from softcache.store.store import Store

TRIES = 3  # for a file of which other bytes came than are listed


def send(source: Store, target: Store, name: str, size: int, known: str | None, spool: Path) -> tuple[Listed, bool]:
    """Stores a file of ``size`` bytes, unless the target has these very bytes. ``known``: its sha256, where a listing
    says it; otherwise it is what the source has. ``spool``: a folder for a file on its way between two stores, of
    which neither is a folder.

    Result: the file as the target has it, and whether it was sent.
    Errors: ``IntegrityError`` where other bytes come than are listed; the target then has no such file, or its old one.
    """
    here = source.path(name) if isinstance(source, Local) else None
    if here is not None:
        found = sha256_of(here)
        if known not in (None, found) or here.stat().st_size != size:
            raise IntegrityError(
                f"{here} has other bytes than are listed: run softcache verify on its cache; if it was repaired since, "
                f"remove {LISTING} there"
            )
        known = found
    if known is not None and target.sha256(name, size) == known:
        return Listed(size, known), False
    if here is not None:
        assert known is not None
        target.put(name, here, known)
        return Listed(size, known), True
    part = target.temporary(name) if isinstance(target, Local) else temporary_path(spool / Path(name).name)
    if not isinstance(target, Local) and size > (free := shutil.disk_usage(spool).free):
        raise StoreError(
            f"{source.where}/{name} is said to have {decimal_size(size)}, and its way leads through {spool.parent}, "
            f"where {decimal_size(free)} are free: if that is its size, set TMPDIR to a folder on a larger disk"
        )
    try:
        found = fetched(source, name, size, known, part)
        if known is None and target.sha256(name, size) == found:
            return Listed(size, found), False
        if isinstance(target, Local):
            target.take(name, part)
        else:
            target.put(name, part, found)
    finally:
        part.unlink(missing_ok=True)
    return Listed(size, found), True


def fetched(source: Store, name: str, size: int, known: str | None, to: Path) -> str:
    """Writes a file of a store to ``to`` and reads it back; its sha256.

    Errors: ``IntegrityError`` where it isn't what is ``known`` of it, after a few tries.
    """
    for attempt in range(1, TRIES + 1):
        found = source.get(name, to, size)
        wanted = found if known is None else known
        if sha256_of(to) == wanted:
            return wanted
        to.unlink()
        if attempt == TRIES:
            raise IntegrityError(f"{source.where}/{name} has other bytes than are listed, {TRIES} times")
    raise AssertionError("unreachable")
