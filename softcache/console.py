"""What a person sees while something runs: a bar on a terminal, plain lines in a log. Standard error, always."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_QUIET = {"value": False}


def set_quiet(quiet: bool) -> None:
    """Silences ``say`` and ``bar`` for this process (results and errors are not theirs)."""
    _QUIET["value"] = quiet


def say(text: str) -> None:
    """One line."""
    if not _QUIET["value"]:
        print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """One line that is shown however quiet."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


class Bar:
    """Counts work done. On a terminal it redraws itself; in a log it writes a line every 30 seconds."""

    EVERY_S = 30.0

    def __init__(self, title: str, total: int, unit: str):
        self._title, self._total, self._unit = title, max(total, 1), unit
        self._done, self._began = 0, time.monotonic()
        self._shown = self._began
        self._rich = _rich_bar(title, self._total, unit) if sys.stderr.isatty() and not _QUIET["value"] else None

    def advance(self, count: int, note: str = "") -> None:
        """``count`` more units are done."""
        self._done += count
        if self._rich is not None:
            self._rich[0].update(self._rich[1], advance=count, note=note)
            return
        now = time.monotonic()
        if now - self._shown >= self.EVERY_S and not _QUIET["value"]:
            self._shown = now
            rate = self._done / (now - self._began)
            left = (self._total - self._done) / rate if rate else 0
            say(
                f"{self._title}: {self._done:,}/{self._total:,} {self._unit} "
                f"({100 * self._done // self._total} %), {rate:,.0f}/s, {duration(left)} left {note}".rstrip()
            )

    def close(self) -> None:
        if self._rich is not None:
            self._rich[0].stop()


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
