"""What a tracker is: a service or a kind of file in which people look at trainings while they run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, Protocol

# stopped: from outside, by a signal or because others were better
Status = Literal["finished", "failed", "stopped"]
Value = bool | int | float | str


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a run when it begins or goes on.

    ``folder``: of the run; ``name``: what it is called; ``group``: the sweep or comparison that it belongs to;
    ``command``: ``teach`` or ``train``; ``config``: options and what it is trained on, by name. ``key``: what the
    tracker called this run when it was opened before, None the first time; ``epochs``: how many it has of it.
    """

    folder: Path
    name: str
    command: str
    config: Mapping[str, Value] = field(default_factory=dict)
    group: str | None = None
    key: str | None = None
    epochs: int = 0


class OpenRun(Protocol):
    """A run that a tracker has open. ``key``: by which the tracker finds it again, letters, digits, ``_``, ``-`` and
    ``.``. Only one thread calls its methods, and whatever they raise ends the tracking of this run, not the run."""

    key: str

    def log(self, axis: Literal["epoch", "step"], number: int, values: Mapping[str, float]) -> None:
        """Values by name, of this epoch or of this step (both as ``metrics.jsonl`` and ``steps.jsonl`` count)."""

    def close(self, status: Status, summary: Mapping[str, Value]) -> None:
        """Returns when everything is delivered or stored. ``summary``: what the run came to."""


class Tracker(Protocol):
    """A component of this folder. ``package``: what has to be installed for it, by the name it is imported by; the
    extra that installs it has the component's name."""

    package: ClassVar[str]

    def load(self) -> None:
        """Imports what ``open`` needs. Errors: ``UsageError`` where the options can't be followed here."""

    def open(self, run: TrackedRun) -> OpenRun:
        """Begins the run, or goes on with the one of ``run.key``. Called from a thread of its own."""
