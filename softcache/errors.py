"""The errors that a user can cause, each a single line that says what, what was found, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SoftcacheError(Exception):
    """Base of every error that softcache raises for bad input or a damaged file.

    ``exit_status`` is what the command line returns: 2 for usage, 1 otherwise.
    """

    exit_status = 1


class UsageError(SoftcacheError):
    """An option or argument that can't be: an unknown name, a bad value, a forbidden combination."""

    exit_status = 2


class DatasetError(SoftcacheError):
    """Samples that are missing, unreadable or not what was promised."""


class ModelError(SoftcacheError):
    """A network or weights that are missing, can't be read or don't fit."""


class CacheError(SoftcacheError):
    """A cache that is missing, of another identity, or incomplete for what is asked of it."""


class IntegrityError(CacheError):
    """Bytes on disk that are not what was written."""


class PixelsError(CacheError):
    """A student is given inputs that the teacher never saw."""


class LockedError(CacheError):
    """Another process is at work on the same folder."""


class NotNamedError(SoftcacheError):
    """A path or code that only a file of a folder names, and not the user."""


class NumericsError(SoftcacheError):
    """Logits, hints or losses that are not finite, or don't fit their codec."""


class OtherRankError(SoftcacheError):
    """Another rank of the same training failed, and says why: the command line says nothing for this one."""

    def __init__(self, message: str, exit_status: int = 1):
        super().__init__(message)
        self.exit_status = exit_status


class PrunedError(SoftcacheError):
    """A student that left its training early, because others were better after as many epochs."""


class StoreError(SoftcacheError):
    """An object store that can't be reached, or that refuses what is asked of it."""


class MissingExtraError(SoftcacheError):
    """An optional dependency is not installed; the message names the extra."""


def nearest(name: str, candidates: Iterable[str], count: int = 3) -> str:
    """``": did you mean a, b?"`` for the candidates that look like ``name``, else those there are."""
    pool = sorted(set(candidates))
    close = difflib.get_close_matches(name, pool, n=count, cutoff=0.5)
    if close:
        return f": did you mean {', '.join(close)}?"
    if not pool:
        return ""
    shown = ", ".join(pool[:12]) + (f", … ({len(pool)} in all)" if len(pool) > 12 else "")
    return f": there are {shown}"
