"""Processes that make pixels: they end with their parent, however it ends, and leave signals to it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterator

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def follow_parent(worker: int) -> None:
    """The ``worker_init_fn`` of a DataLoader.

    On Ctrl-C the terminal signals every process: only the parent answers, and says where things stand. When the parent
    is killed, the kernel ends a worker at once; torch's own watchdog, which is all there is on macOS, takes 5 s.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})  # blocked by ``starting``
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == 1:  # it had gone before we asked
            os._exit(1)


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """While workers start, signals wait: one that arrives before ``follow_parent`` would end in a traceback."""
    waiting = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, waiting)
