"""``trackio``: runs in Trackio, on this machine or in a Space of the Hugging Face hub."""

from __future__ import annotations

import importlib
import logging
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from softcache.tracking._tracker import OpenRun, Status, TrackedRun, Value

log = logging.getLogger(__name__)

PROJECT = "softcache"


@dataclass(frozen=True)
class Trackio:
    """Runs in Trackio's folder on this machine, which ``trackio show`` shows; with ``space`` in a Space of the hub
    (OWNER/NAME). A server of one's own is named by ``$TRACKIO_SERVER_URL``."""

    package: ClassVar[str] = "trackio"
    project: str = PROJECT
    space: str | None = None

    def load(self) -> None:
        importlib.import_module("trackio")
        # Trackio tells on standard output, where results of softcache go, what it does.
        for name in ("trackio", "trackio.run", "trackio.utils"):
            if name in sys.modules:
                sys.modules[name].print = _to_log  # type: ignore[attr-defined]

    def open(self, run: TrackedRun) -> OpenRun:
        return _Open(self, run)


class _Open:
    def __init__(self, tracker: Trackio, run: TrackedRun):
        trackio = importlib.import_module("trackio")
        self._trackio: Any = trackio
        # Trackio finds a run again by its name, and runs of several folders may be called alike.
        self.key = run.key or f"{_name(run.name)}-{secrets.token_hex(3)}"
        # Which run is the current one is known of each thread; this thread has this one.
        self._run: Any = trackio.init(
            tracker.project,
            name=self.key,
            group=run.group,
            space_id=tracker.space,
            config={"command": run.command, **run.config},
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        self._last = run.epochs

    def log(self, axis: Literal["epoch", "step"], number: int, values: Mapping[str, float]) -> None:
        # Its own number of a row is the epoch's or the step's; names of steps begin with step/ and are never drawn
        # over epochs, as rows of either have no values of the other.
        self._run.log(dict(values), step=number)
        if axis == "epoch":
            self._last = number

    def close(self, status: Status, summary: Mapping[str, Value]) -> None:
        self._run.log(dict(summary), step=self._last)
        if status == "failed":
            self._run.alert(f"{self.key} failed", str(summary.get("final/reason", "")), self._trackio.AlertLevel.ERROR)
        self._run.finish()


def _name(text: str) -> str:
    """Letters, digits, ``_``, ``-`` and ``.`` alone."""
    plain = "".join(one if one.isascii() and (one.isalnum() or one in "_-.") else "-" for one in text)
    return plain.lstrip("_-.")[:150] or "run"


def _to_log(*parts: object, **_: object) -> None:
    log.debug(" ".join(map(str, parts)))
