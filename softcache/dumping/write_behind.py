"""Writing on a thread of its own, so that the teacher goes on while the disk is at work."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class WriteBehind(Generic[T]):
    """Calls ``write`` with each item on one thread, in the order of ``put``.

    At most ``limit`` items wait while another is being written; ``put`` then waits too, so that a slow disk holds the
    teacher back and memory stays bounded. After a failure nothing more is written.
    """

    def __init__(self, write: Callable[[T], None], limit: int):
        self._write, self._limit = write, limit
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="softcache-writer")
        self._pending: deque[Future[None]] = deque()
        self._stopped = False

    def put(self, item: T) -> None:
        """Hands an item over, as soon as there is room for it.

        Errors: whatever ``write`` raised for an earlier item.
        """
        while self._pending and (self._pending[0].done() or len(self._pending) > self._limit):
            self._pending.popleft().result()
        self._pending.append(self._executor.submit(self._run, item))

    def close(self) -> None:
        """Waits until everything is written.

        Errors: whatever ``write`` raised.
        """
        while self._pending:
            self._pending.popleft().result()
        self._executor.shutdown()

    def abort(self) -> None:
        """Waits for the item that is being written, and drops those that wait."""
        self._stopped = True
        self._executor.shutdown(cancel_futures=True)

    def _run(self, item: T) -> None:
        if self._stopped:
            return
        try:
            self._write(item)
        except BaseException:
            self._stopped = True  # items behind it may depend on it
            raise
