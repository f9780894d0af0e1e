"""Trying again where a store doesn't answer: a bounded number of times, with waits that grow and differ."""

from __future__ import annotations

import errno
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from softcache.addresses import printable
from softcache.errors import SoftcacheError, StoreError

log = logging.getLogger(__name__)

T = TypeVar("T")
# The local disk's, not the store's: trying again doesn't help.
_LOCAL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.ENAMETOOLONG}
# By their names, as the packages that define them may not be installed.
_FINAL = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "RepositoryNotFoundError",
    "GatedRepoError",
    "ParamValidationError",
}


@dataclass(frozen=True)
class Patience:
    """``attempts`` in all. Before the k-th one more, from a half to all of ``first_s · 2^k`` seconds pass, at most
    ``most_s``; the share is drawn, so that many readers don't come back at once."""

    attempts: int = 8
    first_s: float = 0.5
    most_s: float = 30.0

    def wait_s(self, failed: int) -> float:
        """Seconds to wait after so many failed attempts."""
        return random.uniform(0.5, 1.0) * min(self.most_s, self.first_s * 2 ** (failed - 1))


def persistently(do: Callable[[], T], what: str, patience: Patience) -> T:
    """Does something with a store, again where it fails. ``what``: for messages, "reading s3://b/c/rows.h5".

    Errors: ``FileNotFoundError`` and softcache's own at once; ``StoreError`` of one line where it is refused or has
    failed too often.
    """
    began = time.monotonic()
    for attempt in range(1, patience.attempts + 1):
        try:
            return do()
        except (SoftcacheError, FileNotFoundError, FileExistsError):
            raise
        except PermissionError as error:
            raise StoreError(f"{printable(what)} was refused ({_line(error)}): check the store's credentials") from None
        except Exception as error:  # of whichever package: what it means can't be known, so it is tried again
            if isinstance(error, OSError) and error.errno in _LOCAL:
                raise
            if type(error).__name__ in _FINAL:
                raise StoreError(f"{printable(what)} failed: {_line(error)}") from None
            if attempt == patience.attempts:
                raise StoreError(
                    f"{printable(what)} failed {attempt} times in {time.monotonic() - began:.0f} s, at last with "
                    f"{_line(error)}: the store can't be reached; run the same command again later to go on"
                ) from None
            seconds = patience.wait_s(attempt)
            log.debug(f"{printable(what)}: {_line(error)}; again in {seconds:.1f} s")
            time.sleep(seconds)
    raise AssertionError("unreachable")


def _line(error: BaseException) -> str:
    """Of an error's text one line, without what is secret in it."""
    text = " ".join(printable(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
