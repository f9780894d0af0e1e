"""The store of a path or an address."""

from __future__ import annotations

import os
from pathlib import Path

from softcache.addresses import is_address, parse_address
from softcache.store.https import Https
from softcache.store.local import Local
from softcache.store.remote import Fsspec
from softcache.store.retry import Patience
from softcache.store.store import Store


def open_store(path: str | os.PathLike[str], option: str, patience: Patience | None = None) -> Store:
    """``option``: what the path was given with, for messages.

    Errors: ``UsageError`` for an address that can't be, ``MissingExtraError`` where its package is missing.
    """
    if not is_address(path):
        return Local(Path(path))
    address = parse_address(path, option)
    return Https(address, patience) if address.scheme == "https" else Fsspec.at(address, patience)
