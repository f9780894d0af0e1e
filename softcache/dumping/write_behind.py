"""Writing on a thread of its own, so that the teacher goes on while the disk is at work."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

T = TypeVar("T")
TICK_S = 0.005  # how often a wait asks whether a device is still at work


class WriteBehind(Generic[T]):
    """Calls ``write`` with each item on one thread, in the order of ``put``.

    At most ``limit`` items wait while another is being written; ``put`` then waits too, so that a slow disk holds the
    teacher back and memory stays bounded. After a failure nothing more is written.

    ``waited``: the seconds that ``put`` and ``close`` have waited though all items were computed.
    """

    def __init__(self, write: Callable[[T], None], limit: int):
        self._write, self._limit = write, limit
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="softcache-writer")
        self._pending: deque[Future[None]] = deque()
        self._stopped = False
        self.waited = 0.0
        self._computed: Callable[[], bool] = lambda: True  # of the last item

    def put(self, item: T, computed: Callable[[], bool] = lambda: True) -> None:
        """Hands an item over, as soon as there is room for it.

        ``computed``: whether the item is there already, or a device is still at work on it, which then loses no time.
        Errors: whatever ``write`` raised for an earlier item.
        """
        self._computed = computed
        while self._pending and (self._pending[0].done() or len(self._pending) > self._limit):
            self._take()
        self._pending.append(self._executor.submit(self._run, item))

    def close(self) -> None:
        """Waits until everything is written.

        Errors: whatever ``write`` raised.
        """
        while self._pending:
            self._take()
        self._executor.shutdown()

    def abort(self) -> None:
        """Waits for the item that is being written, and drops those that wait."""
        self._stopped = True
        self._executor.shutdown(cancel_futures=True)

    def _take(self) -> None:
        """Waits for the first item."""
        first = self._pending.popleft()
        while not first.done():
            began, lost = time.monotonic(), self._computed()
            wait([first], timeout=TICK_S)
            self.waited += lost * (time.monotonic() - began)
        first.result()

    def _run(self, item: T) -> None:
        if self._stopped:
            return
        try:
            self._write(item)
        except BaseException:
            self._stopped = True  # items behind it may depend on it
            raise
