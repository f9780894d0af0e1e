"""The codec of a column, which may be code that only the user can name."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any

from softcache.codecs._open import is_own, named_again, open_codec, option_of
from softcache.errors import CacheError, UsageError


def opened_codec(recorded: str, named: Callable[[], str | None], where: str) -> Any:
    """The codec that a manifest records. ``named``: finds the code that the user named for this cache; ``where``: how
    messages call the cache.

    Errors: ``CacheError`` where it isn't available, or is code that nobody named.
    """
    given = named() if is_own(recorded) else None
    if is_own(recorded) and given is None:
        own = option_of(recorded)
        raise CacheError(
            f"{where} was made with a codec that is code, {own}. For safety, softcache runs no code that is "
            f"named only in a cache: if you trust it, pass --codec {shlex.quote(own)}, or where you have it"
        )
    try:
        return open_codec(recorded) if given is None else named_again(recorded, given)
    except UsageError as error:  # what the manifest says is no usage
        raise CacheError(f"{where}: codec not available: {error}") from None
