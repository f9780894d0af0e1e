"""What a person sees while something runs: a bar on a terminal, plain lines in a log. Standard error, always."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger(__name__)
_shown = {"bars": True}


class _Handler(logging.Handler):
    """One line on standard error for each message, also where that stream is another by now."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        print(f"warning: {text}" if record.levelno >= logging.WARNING else text, file=sys.stderr, flush=True)


def show_messages(*, quiet: bool = False) -> None:
    """Shows the messages of the ``softcache`` logger on standard error; ``quiet``: warnings alone, and no bars.

    The command line calls this. A program that calls softcache's functions configures ``logging`` as it likes.
    """
    logger = logging.getLogger("softcache")
    if not any(isinstance(handler, _Handler) for handler in logger.handlers):
        logger.addHandler(_Handler())
        logger.propagate = False
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    _shown["bars"] = not quiet


class Bar:
    """Counts work done. On a terminal it redraws itself; in a log it writes a line every 30 seconds."""

    EVERY_S = 30.0

    def __init__(self, title: str, total: int, unit: str):
        self._title, self._total, self._unit = title, max(total, 1), unit
        self._done, self._began = 0, time.monotonic()
        self._shown = self._began
        self._rich = _rich_bar(title, self._total, unit) if sys.stderr.isatty() and _shown["bars"] else None

    def advance(self, count: int, note: str = "") -> None:
        """``count`` more units are done."""
        self._done += count
        if self._rich is not None:
            self._rich[0].update(self._rich[1], advance=count, note=note)
            return
        now = time.monotonic()
        if now - self._shown >= self.EVERY_S and _shown["bars"]:
            self._shown = now
            rate = self._done / (now - self._began)
            left = (self._total - self._done) / rate if rate else 0
            log.info(
                f"{self._title}: {self._done:,}/{self._total:,} {self._unit} "
                f"({100 * self._done // self._total} %), {rate:,.0f}/s, {duration(left)} left {note}".rstrip()
            )

    def close(self) -> None:
        if self._rich is not None:
            self._rich[0].stop()


@contextmanager
def advising(what: str) -> Iterator[None]:
    """Says ``what`` a user can do next when Ctrl-C or SIGTERM ends what is inside, however quiet."""
    try:
        yield
    except Exception:
        raise
    except BaseException:
        print(f"stopped: {what}", file=sys.stderr, flush=True)
        raise


@contextmanager
def bar(title: str, total: int, unit: str) -> Iterator[Bar]:
    """``with bar("dump", keys, "keys") as progress: progress.advance(256)``."""
    shown = Bar(title, total, unit)
    try:
        yield shown
    finally:
        shown.close()


def duration(seconds: float) -> str:
    """``"4 s"``, ``"3 min 20 s"``, ``"5 h 12 min"``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(count: float) -> str:
    """``"3.4 MiB"``."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _rich_bar(title: str, total: int, unit: str) -> tuple[Any, Any]:
    # imported here, because a log needs no rich
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn(unit + " {task.fields[note]}"),
        TimeRemainingColumn(compact=True),
        console=Console(stderr=True),
        transient=True,
    )
    task = progress.add_task(title, total=total, note="")
    progress.start()
    return progress, task
