"""What a place has of a cache before anything of it is trusted: the manifest and the listing of files."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from softcache.cache.listing import LISTING, MAX_LISTING_BYTES, Listing, names_of, refuse_other_pin
from softcache.cache.manifest import Manifest
from softcache.cache.schema import MANIFEST, MAX_MANIFEST_BYTES, ColumnRecord
from softcache.errors import CacheError, IntegrityError, UsageError
from softcache.store.store import Store


@dataclass(frozen=True)
class Described:
    """``content``: the manifest's bytes. ``listing``: None where there is none of these very bytes: a cache that has
    changed since keeps that of an earlier state."""

    manifest: Manifest
    content: bytes
    listing: Listing | None


def described(store: Store, expected: Iterable[str] = (), *, listed: bool = False) -> Described:
    """Manifest and listing of the cache in a store. ``expected``: pins, one of which the listing must have. ``listed``:
    whether there must be a listing.

    Errors: ``CacheError`` where there is no cache; ``IntegrityError`` where it is damaged, or another than expected.
    """
    expected = tuple(expected)
    written = store.read(LISTING, MAX_LISTING_BYTES)
    content = store.read(MANIFEST, MAX_MANIFEST_BYTES)
    if content is None:
        raise CacheError(f"{store.where} is no cache: it has no {MANIFEST}")
    if written is None and (expected or listed):
        raise CacheError(
            f"{store.where} has no {LISTING}, which says what its files must be: softcache copy makes a copy that has"
        )
    listing = Listing.parse(written, f"{store.where}/{LISTING}") if written is not None else None
    if listing is not None:
        refuse_other_pin(listing.pin, expected, store.where)
        try:
            listing.check(MANIFEST, content, store.where)
        except IntegrityError as error:
            if expected or listed:
                raise IntegrityError(f"{error}: it has changed since, and softcache copy lists it anew") from None
            listing = None
    return Described(Manifest.of(content, f"{store.where}/{MANIFEST}"), content, listing)


def refuse_loss(where: str, held: Manifest, files: Iterable[str], ours: Manifest, names: Collection[str]) -> None:
    """Refuses to replace a cache by another one, or by one that has less: the same cache id says that the teacher, the
    data and the views are the same, but not that as much is kept of them.

    ``held``: the manifest of the cache at ``where``, which has these ``files``. ``ours``: the one that is to replace
    it; its files are ``names``. Errors: ``UsageError`` that says what would be lost.
    """
    if held.cache_id != ours.cache_id:
        raise UsageError(f"{where} holds another cache: copy to another place")
    records, wanted, old = ours.state.columns, set(names), held.state.columns
    changed = {name for name in old if name in records and old[name].sha256() != records[name].sha256()}
    for name in (name for name in names_of(held, files) if name.startswith("view-")):
        column = name.rpartition("/")[2].rpartition("-")[0]
        if column not in records:
            lost = f"with {column}, which this one doesn't have"
        elif column in changed:
            before, after = _form(old[column]), _form(records[column])
            lost = f"with {column} as {before}, {'fitted to other keys' if before == after else f'not as {after}'}"
        elif int(name[5:].partition("/")[0]) >= ours.state.views:
            lost = f"with more views than the {ours.state.views} that this one has"
        elif name not in wanted:
            lost = f"with {name}, which is missing in this one"
        else:
            continue
        raise UsageError(f"{where} holds this cache {lost}: copy to another place")


def _form(record: ColumnRecord) -> str:
    compress = f", compressed ({record.compress})" if record.compress is not None else ""
    before = f", converted from {record.converted[-1].codec}" if record.converted else ""
    return f"{record.codec}{compress}{before} in shards of {record.shard_rows:,} rows"
