"""What a person sees while something runs: messages and progress, always on standard error.

On a terminal both go through one rich console, so that a message is printed above the progress bar and not into it. In
a log each message is one plain line, and progress is such a line now and then.
"""

from __future__ import annotations

import functools
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from softcache.addresses import printable
from softcache.errors import SoftcacheError, StoreError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

log = logging.getLogger(__name__)
_shown = {"progress": False, "advice": True}


def show_messages(*, quiet: bool = False) -> None:
    """Shows the messages and the progress of softcache on standard error; with ``quiet`` warnings alone.

    The command line calls this. In other programs softcache's messages go to ``logging.getLogger("softcache")``, which
    shows what that program's logging shows (by default warnings and errors), and there are no progress bars.
    """
    logger = logging.getLogger("softcache")
    if not any(isinstance(handler, _Handler) for handler in logger.handlers):
        logger.addHandler(_Handler())
        logger.propagate = False
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    _shown["progress"] = not quiet


@contextmanager
def silent(silent: bool = True) -> Iterator[None]:
    """Shows errors alone, where ``silent``: for a process beside one that says the same."""
    logger, before = logging.getLogger("softcache"), dict(_shown)
    level = logger.level
    if silent:
        logger.setLevel(logging.ERROR)
        _shown.update(progress=False, advice=False)
    try:
        yield
    finally:
        logger.setLevel(level)
        _shown.update(before)


def run_script(main: Callable[[], None]) -> None:
    """Runs the main function of a script, with ``show_messages``; an error of softcache is one line, and status 1."""
    show_messages()
    try:
        main()
    except SoftcacheError as error:
        sys.exit(f"error: {error}")


def of_rows(share: float) -> str:
    """A share of a dataset's rows, for people.

    >>> of_rows(0.25), of_rows(0.001)
    ('25 % of the rows', '0.1 % of the rows')
    """
    return f"{100 * share:.6g} % of the rows"


def counted(number: int, what: str) -> str:
    """A number with what it counts, in the singular or the plural.

    >>> counted(1, "view"), counted(1438, "view")
    ('1 view', '1,438 views')
    """
    return f"{number:,} {what}" + ("" if number == 1 else "s")


class _Handler(logging.Handler):
    """Prints each message as one line to the ``sys.stderr`` of that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            warning, text = record.levelno >= logging.WARNING, printable(record.getMessage())
            console = _terminal()
            if console is None:
                print(f"warning: {text}" if warning else text, file=sys.stderr, flush=True)
            else:
                from rich.text import Text

                line = Text.assemble(("warning: ", "bold yellow"), text) if warning else Text(text)
                console.print(line, soft_wrap=True)  # the terminal wraps it, and copying it gives one line again
        except Exception:  # as every handler of logging does: a message that can't be shown must not end a training
            self.handleError(record)


def _terminal() -> Console | None:
    """The console of the terminal that standard error is, or ``None`` where it is a log."""
    if not sys.stderr.isatty():
        return None
    console = _console()
    return None if console.is_dumb_terminal else console


@functools.cache
def _console() -> Console:
    # Imported here, because a log needs no rich. It looks up sys.stderr at each use and respects NO_COLOR.
    from rich.console import Console

    return Console(stderr=True)


class Bar:
    """Counts work done. On a terminal a bar is redrawn; in a log there is a line every 30 seconds."""

    EVERY_S = 30.0

    def __init__(self, title: str, total: int, unit: str):
        self._title, self._total, self._unit = title, max(total, 1), unit
        self._done, self._began = 0, time.monotonic()
        self._logged = self._began
        self._live: tuple[Progress, TaskID] | None = None
        console = _terminal() if _shown["progress"] else None
        if console is not None:
            self._live = _live_bar(console, title, self._total, unit)

    def advance(self, count: int, note: str = "") -> None:
        """``count`` more units are done."""
        self._done += count
        if self._live is not None:
            progress, task = self._live
            progress.update(task, advance=count, note=note)
            return
        now = time.monotonic()
        if now - self._logged >= self.EVERY_S and _shown["progress"]:
            self._logged = now
            per_second = self._done / (now - self._began)
            left = duration((self._total - self._done) / per_second) if per_second else "unknown time"
            log.info(
                f"{self._title}: {self._done:,}/{self._total:,} {self._unit} "
                f"({100 * self._done // self._total} %), {rate(per_second)}, {left} left {note}".rstrip()
            )

    def close(self) -> None:
        """Removes the bar from the terminal."""
        if self._live is not None:
            self._live[0].stop()


@contextmanager
def advising(what: Callable[[], str]) -> Iterator[None]:
    """Prints ``what()``, which a user can do next, when Ctrl-C, SIGTERM or a store that is gone ends what is inside;
    with ``--quiet`` too."""
    try:
        yield
    except BaseException as error:
        outside = isinstance(error, StoreError) or not isinstance(error, Exception)
        if outside and _shown["advice"]:
            print(f"stopped: {what()}", file=sys.stderr, flush=True)
        raise


@contextmanager
def bar(title: str, total: int, unit: str) -> Iterator[Bar]:
    """``with bar("dump", keys, "keys") as progress: progress.advance(256)``."""
    shown = Bar(title, total, unit)
    try:
        yield shown
    finally:
        shown.close()


@contextmanager
def live_table() -> Iterator[Callable[[Sequence[str], Sequence[Sequence[str]]], None]]:
    """Gives a function that shows a header and lines below the messages of a terminal, in place of those before. A log
    has messages alone."""
    console = _terminal() if _shown["progress"] else None
    if console is None:
        yield lambda header, lines: None
        return
    from rich.live import Live
    from rich.table import Table

    with Live(console=console, transient=True, auto_refresh=False) as live:

        def show(header: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
            table = Table(*header, box=None)
            for line in lines:
                table.add_row(*line)
            live.update(table, refresh=True)

        yield show


def _live_bar(console: Console, title: str, total: int, unit: str) -> tuple[Progress, TaskID]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn(unit + " {task.fields[note]}"),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
    )
    task = progress.add_task(title, total=total, note="")
    progress.start()
    return progress, task


def rate(per_second: float, unit: str = "") -> str:
    """``"1,250/s"``, ``"2.5/s"``; below one a second the time that each takes, ``"20 s each"``. With a ``unit``
    ``"1,250 keys/s"``, ``"20 s a key"`` for ``"keys"``."""
    if 0 < per_second < 1:
        return f"{duration(1 / per_second)} " + (f"a {unit.removesuffix('s')}" if unit else "each")
    number = f"{per_second:,.0f}" if per_second >= 10 or per_second == 0 else f"{per_second:.1f}"
    return f"{number} {unit}/s" if unit else f"{number}/s"


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


def decimal_size(count: float) -> str:
    """As disks and networks are sold, in powers of 1000.

    >>> decimal_size(999), decimal_size(2_562_334_000), decimal_size(186e12)
    ('999 bytes', '2.56 GB', '186.00 TB')
    """
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.2f} {unit}"
        count /= 1000
    return f"{count:.2f} PB"
