"""One writer at a place of a store: an object that says who it is, and until when.

A lock object can't be given back by the system when its owner dies, so it has a time at which it ends, and its owner
moves that time on while it works. On stores that make an object only where there is none, two can't make it at once;
on others this is a check and a hope, and the user is told so.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

from softcache import strictjson
from softcache.atomic import is_dead, writer_name
from softcache.console import duration
from softcache.errors import IntegrityError, LockedError, StoreError
from softcache.store.store import Store

log = logging.getLogger(__name__)
T = TypeVar("T")

NAME = ".writing.lock"
LASTS_S = 600.0  # after its owner's last sign of life
EVERY_S = 60.0
SETTLE_S = 1.0  # in which two that took over the same dead lock see which of them has it
MOST_BYTES = 4096


class StoreLock:
    """``with StoreLock(store): …``. ``what``: for messages, "s3://b/c is being written".

    Errors of entering: ``LockedError`` that says who writes there.
    """

    def __init__(self, store: Store, what: str):
        self._store, self._what = store, what
        self._token = f"{writer_name()}{secrets.token_hex(4)}"
        self._ended = threading.Event()
        self._lost: str | None = None
        self._until = self._seen = 0.0  # of time.monotonic(): its end, and when it was last known to be ours
        self._thread = threading.Thread(target=self._renew, name="softcache-lock", daemon=True)

    def __enter__(self) -> StoreLock:
        if not self._store.exclusive:
            log.warning(
                f"{self._store.where} can't make sure that nobody else writes there at the same moment: start one dump "
                "at a time"
            )
        if not self._write(self._store.create):
            self._take_over()
        self._seen = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        if self._lost is None and self._owner(self._read()) == self._token:
            self._store.delete(NAME)

    def check(self) -> None:
        """Errors: ``LockedError`` where another writer has taken the place over, as far as is known; where that was
        last made sure of a while ago, because the store didn't answer, it is asked."""
        if self._lost is None and time.monotonic() - self._seen > 2 * EVERY_S:
            self._confirm()
        if self._lost is not None:
            raise LockedError(self._lost)

    def _confirm(self) -> None:
        """Looks whose it is. One that ended before it was renewed isn't ours, whatever it says: another writer may be
        about to take it."""
        began = time.monotonic()
        if self._owner(self._read()) != self._token:
            self._lost = f"{self._what} by another process, which has taken it over from this one"
        elif time.monotonic() > self._until:
            self._lost = (
                f"{self._store.where} couldn't be reached for {duration(LASTS_S)}, and another process may have taken "
                "it over since: run the same command again"
            )
        else:
            self._seen = began

    def _write(self, write: Callable[[str, bytes], T]) -> T:
        """Makes or renews the lock object."""
        began = time.monotonic()
        content = json.dumps({"owner": self._token, "until": time.time() + LASTS_S}).encode()
        done = write(NAME, content)
        self._until = began + LASTS_S
        return done

    def _take_over(self) -> None:
        """The lock of a writer that is gone. Errors: ``LockedError`` where it isn't."""
        found = self._read()
        left = self._left(found)
        owner = self._owner(found)
        if found is not None and left > 0 and not is_dead(owner):
            host, _, pid = (*owner.split("~"), "", "", "")[:3]
            raise LockedError(
                f"{self._what} by process {pid} on {host.partition('.')[0]}: wait for it, or end it; if it is gone "
                f"already, its lock ends in {duration(left)}"
            )
        self._store.delete(NAME)
        if self._write(self._store.create):
            time.sleep(SETTLE_S if found is not None and not is_dead(owner) else 0)
            if self._owner(self._read()) == self._token:
                return
        raise LockedError(f"{self._what} by another process, which began at the same moment: wait for it, or end it")

    def _renew(self) -> None:
        while not self._ended.wait(EVERY_S):
            try:
                self._confirm()
                if self._lost is not None:
                    return
                self._write(self._store.write)
            except StoreError as error:  # whatever else is done with the store fails too, and says so
                log.debug(str(error))

    def _read(self) -> bytes | None:
        try:
            return self._store.read(NAME, MOST_BYTES)
        except IntegrityError:  # no lock of softcache
            return b""

    def _owner(self, content: bytes | None) -> str:
        return str(_fields(content).get("owner", ""))

    def _left(self, content: bytes | None) -> float:
        """Seconds until it ends."""
        until = _fields(content).get("until", 0)
        return min(LASTS_S, until - time.time()) if isinstance(until, (int, float)) else 0


def _fields(content: bytes | None) -> dict[str, object]:
    try:
        found = strictjson.loads(content or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
