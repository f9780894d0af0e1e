"""What a run's trackers are told, from its first epoch to what it came to."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from softcache.errors import PrunedError
from softcache.tracking._courier import Courier
from softcache.tracking._kept import KeptFile
from softcache.tracking._names import scalars, summarized
from softcache.tracking._specs import parse_tracker
from softcache.tracking._tracker import Status, TrackedRun

# How long a finished training waits for servers, and one that was told to end.
FINISHED_S, STOPPED_S = 30.0, 5.0


class RunLog:
    """Tells trackers of one run. None of its methods waits for them but ``wait``."""

    def __init__(self, couriers: Sequence[Courier] = ()):
        self._couriers, self._ended = list(couriers), False
        self._patience = FINISHED_S

    @classmethod
    def of(cls, specs: Sequence[str], run: TrackedRun) -> RunLog:
        """``specs``: of the trackers, checked before by ``check_trackers``. The run's folder has to be there."""
        if not specs:
            return cls()
        kept = KeptFile(run.folder)
        return cls([Courier(spec, parse_tracker(spec), run, kept) for spec in specs])

    def begin(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """``lines``: of ``metrics.jsonl``, of the epochs that are done; what a tracker lacks of them is sent."""
        for courier in self._couriers:
            for done, line in enumerate(lines, 1):
                if done > courier.epochs:
                    courier.bring("epoch", line["epoch"], scalars(line, "epoch"), done)

    def epoch(self, line: Mapping[str, Any], steps: Iterable[Mapping[str, Any]] = ()) -> None:
        """A line of ``metrics.jsonl``, and those of ``steps.jsonl`` that belong to it."""
        if not self._couriers:
            return
        found = [(int(step["step"]), scalars(step, "step")) for step in steps]
        of_epoch = scalars(line, "epoch")
        for courier in self._couriers:
            for number, values in found:
                courier.bring("step", number, {f"step/{name}": value for name, value in values.items()})
            courier.bring("epoch", line["epoch"], of_epoch, line["epoch"])

    def end(self, status: Status, result: Mapping[str, Any] | None = None, reason: str = "") -> None:
        """``result``: what the run came to; ``reason``: why it isn't finished. Only the first call counts."""
        if self._ended:
            return
        self._ended = True
        if status == "stopped":
            self._patience = STOPPED_S
        summary = summarized({**(result or {}), "status": status, "reason": reason or None})
        for courier in self._couriers:
            courier.end(status, summary)

    def end_by(self, error: BaseException) -> None:
        """The run ends with this error, or from outside."""
        if isinstance(error, Exception):
            status: Status = "stopped" if isinstance(error, PrunedError) else "failed"
            self.end(status, reason=" ".join(str(error).split())[:1000] or type(error).__name__)
        else:
            self.end("stopped", reason="ended from outside")

    @property
    def patience(self) -> float:
        """Seconds for which ``wait`` should wait."""
        return self._patience if self._couriers else 0.0

    def wait(self, until: float) -> None:
        """Returns when all trackers have everything, or at ``until`` on the monotonic clock."""
        for courier in self._couriers:
            courier.wait(until)


@contextlib.contextmanager
def telling(logs: Sequence[RunLog]) -> Iterator[None]:
    """Within it runs are trained. It ends when the trackers have everything, and after a while anyway: a run that
    isn't ended then ends with the error that leaves this context."""
    try:
        yield
    except BaseException as error:
        for one in logs:
            one.end_by(error)
        raise
    finally:
        for one in logs:
            one.end("failed")
        until = time.monotonic() + max((one.patience for one in logs), default=0.0)
        for one in logs:
            one.wait(until)
