"""What codecs are measured to lose, written down as a dump goes on: in a store for other machines too."""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Mapping

from softcache.atomic import replace_file
from softcache.cache.reader import Cache
from softcache.cache.schema import MANIFEST
from softcache.dumping.bound import Bound
from softcache.dumping.codec_error import Measured, Told
from softcache.dumping.kept_error import keep_error
from softcache.stages._to_store import ANNOUNCED

STORE_S = 60.0  # between two manifests that are stored for this alone


def keeping_errors(cache: Cache, bounds: Mapping[str, Bound]) -> Told:
    """``keep_error`` of a cache; of one in a store it also stores the manifest, at most once a minute.

    Errors: those of ``keep_error``, and of the store.
    """
    keep = functools.partial(keep_error, cache.folder, bounds)
    uploading, stored = cache.uploading, time.monotonic()
    if uploading is None:
        return keep

    def both(column: str, now: Measured, before: Measured) -> None:
        nonlocal stored
        keep(column, now, before)
        if time.monotonic() - stored >= STORE_S:
            uploading.put_small([MANIFEST])
            sha256 = hashlib.sha256((cache.folder / MANIFEST).read_bytes()).hexdigest()
            replace_file(cache.folder / ANNOUNCED, sha256.encode())
            stored = time.monotonic()

    return both
