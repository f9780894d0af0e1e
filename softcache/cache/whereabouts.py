"""What a place has of a cache before anything of it is trusted: the manifest and the listing of files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from softcache.cache.listing import LISTING, MAX_LISTING_BYTES, Listing, refuse_other_pin
from softcache.cache.manifest import Manifest
from softcache.cache.schema import MANIFEST, MAX_MANIFEST_BYTES
from softcache.errors import CacheError, IntegrityError
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
        except IntegrityError:
            if expected or listed:
                raise
            listing = None
    return Described(Manifest.of(content, f"{store.where}/{MANIFEST}"), content, listing)
