"""Processes that make pixels: they end with their parent, however it ends, and leave signals to it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType, TracebackType

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def follow_parent(worker: int) -> None:
    """The ``worker_init_fn`` of a DataLoader.

    A terminal's Ctrl-C and a scheduler's SIGTERM go to every process of the group: only the parent answers, and says
    where things stand; it ends its workers itself, if need be with a SIGTERM of its own, the second one. When the
    parent is killed, the kernel ends a worker at once; torch's own watchdog, which is all there is on macOS, takes 5 s.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_the_next_time)
    sys.excepthook = _unless_the_parent_hung_up
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})  # blocked by ``starting``
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == 1:  # it had gone before we asked
            os._exit(1)


def _end_the_next_time(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)


def _unless_the_parent_hung_up(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """multiprocessing's thread that hands tensors over would print a traceback when its parent stops in between."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, traceback)


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """While workers start, signals wait: one that arrives before ``follow_parent`` would end in a traceback."""
    waiting = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, waiting)
