"""A thread that brings a run's numbers to one tracker, so that no training waits for a server."""

from __future__ import annotations

import dataclasses
import logging
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from softcache.addresses import printable
from softcache.tracking._kept import Kept, KeptFile
from softcache.tracking._tracker import OpenRun, Status, TrackedRun, Tracker, Value

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Values:
    """``epochs``: how many the tracker has when it has these."""

    axis: Literal["epoch", "step"]
    number: int
    values: Mapping[str, float]
    epochs: int | None = None


@dataclass(frozen=True)
class _End:
    status: Status
    summary: Mapping[str, Value]


class Courier:
    """Brings what it is given to ``tracker``, in order. ``spec``: of the tracker; ``kept``: where it is written down
    what the tracker has.

    A tracker that fails is told nothing more: one warning says why, and the training goes on.
    """

    def __init__(self, spec: str, tracker: Tracker, run: TrackedRun, kept: KeptFile):
        self._spec, self._tracker, self._kept = spec, tracker, kept
        before = kept.of(spec)
        self._run = dataclasses.replace(run, key=before.key, epochs=before.epochs)
        self.epochs = before.epochs  # that the tracker has already
        self._queue: queue.SimpleQueue[_Values | _End] = queue.SimpleQueue()
        self._done = threading.Event()
        # A daemon, as the process may end while a server doesn't answer.
        self._thread = threading.Thread(target=self._work, name=f"softcache {spec}", daemon=True)
        self._thread.start()

    def bring(
        self, axis: Literal["epoch", "step"], number: int, values: Mapping[str, float], epochs: int | None = None
    ) -> None:
        """``epochs``: how many the tracker has when it has these values."""
        if not self._done.is_set():
            self._queue.put(_Values(axis, number, dict(values), epochs))

    def end(self, status: Status, summary: Mapping[str, Value]) -> None:
        """Nothing more will come."""
        if not self._done.is_set():
            self._queue.put(_End(status, dict(summary)))

    def wait(self, until: float) -> None:
        """Returns when the tracker has everything, and at ``until`` on the monotonic clock with a warning."""
        if not self._done.wait(max(0.0, until - time.monotonic())):
            self._done.set()
            log.warning(
                f"{self._spec} doesn't answer, so it lacks some of {self._run.folder}: a run that is resumed sends "
                "the epochs that are missing"
            )

    def _work(self) -> None:
        try:
            opened = self._tracker.open(self._run)
            self._keep(opened, self.epochs)
            while not self._bring_one(opened):
                pass
        except Exception as error:  # whatever a tracker raises must not end a training
            if not self._done.is_set():
                text = " ".join(printable(error).split())[:300] or type(error).__name__
                log.warning(
                    f"{self._spec} failed and is told nothing more of {self._run.folder}: {text}; the training goes "
                    "on, its numbers are in metrics.jsonl"
                )
        finally:
            self._done.set()

    def _bring_one(self, opened: OpenRun) -> bool:
        """Whether it was the last."""
        item = self._queue.get()
        if isinstance(item, _End):
            opened.close(item.status, item.summary)
            return True
        opened.log(item.axis, item.number, item.values)
        if item.epochs is not None:
            self._keep(opened, item.epochs)
        return False

    def _keep(self, opened: OpenRun, epochs: int) -> None:
        self._kept.keep(self._spec, Kept(opened.key, epochs))
