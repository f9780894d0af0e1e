"""Trackers as the user names them: ``wandb``, ``mlflow:uri=http://host:5000``."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from softcache import registry
from softcache.errors import UsageError
from softcache.extras import missing_extra
from softcache.tracking._tracker import Tracker

KIND = "tracking"


def parse_tracker(spec: str) -> Tracker:
    """Errors: ``UsageError`` for an unknown tracker or option."""
    tracker: Tracker = registry.create(KIND, spec)
    return tracker


def canonical_trackers(specs: Sequence[str]) -> tuple[str, ...]:
    """The specs with every option spelled out and absolute paths.

    Errors: ``UsageError`` for an unknown one, and where two are the same tracker with the same options.
    """
    found = [registry.canonical(registry.split_spec(spec)[0], parse_tracker(spec)) for spec in specs]
    for spec in found:
        if found.count(spec) > 1:
            raise UsageError(f"--log {spec} is given twice: leave one out")
    return tuple(found)


def check_trackers(specs: Sequence[str]) -> None:
    """Imports what the trackers need, before anything is written.

    Errors: ``MissingExtraError`` where a package isn't installed, ``UsageError`` where an option can't be followed
    here.
    """
    for spec in specs:
        name, tracker = registry.split_spec(spec)[0], parse_tracker(spec)
        if importlib.util.find_spec(tracker.package) is None:
            raise missing_extra(f"--log {name} needs {tracker.package}", name)
        tracker.load()
