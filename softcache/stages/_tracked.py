"""From students that are prepared to what trackers are told of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from softcache.config.record import Record
from softcache.stages._running import record_of
from softcache.stages._training import Prepared
from softcache.tracking._log import RunLog, telling
from softcache.tracking._names import configuration
from softcache.tracking._tracker import TrackedRun


@contextlib.contextmanager
def tracked(students: Sequence[Prepared], folders: Sequence[Path], group: str | None = None) -> Iterator[list[RunLog]]:
    """What each student's trackers are told by, in their order; on the first rank alone they are told anything.
    ``folders``: of the runs, which the caller holds; ``group``: what trackers call all of them together."""
    logs = []
    for prepared, folder in zip(students, folders, strict=True):
        specs = prepared.parsed.options.log if prepared.material.ranks.first else ()
        if specs:
            run = tracked_run(folder, record_of(prepared), group, **_caches(prepared))
            logs.append(RunLog.of(specs, run))
        else:
            logs.append(RunLog())
    with telling(logs):
        yield logs


def tracked_run(folder: Path, record: Record[Any], group: str | None = None, **others: Any) -> TrackedRun:
    """What a tracker is told of the run or teacher in ``folder``. ``others``: beside what its record says."""
    data = record.data or {}
    config = {
        **{name: value for name, value in record.options.to_json().items() if name not in ("out", "resume", "log")},
        **others,
        "dataset_fingerprint": data.get("fingerprint"),
        "dataset_rows": data.get("rows"),
        **{f"{name}_version": version for name, version in record.versions.items()},
        "run": str(folder.resolve()),
    }
    return TrackedRun(folder, folder.resolve().name, record.command, configuration(config), group)


def tell_of_test(
    folder: Path, specs: Sequence[str], record: Record[Any], group: str, result: Mapping[str, Any]
) -> None:
    """Tells the trackers of a run that is finished of its score on the test split, which was looked at later."""
    if specs:
        log = RunLog.of(specs, tracked_run(folder, record, group))
        with telling([log]):
            log.end("finished", result)


def _caches(prepared: Prepared) -> dict[str, Any]:
    identities = [cache.manifest.identity.teacher for cache in prepared.data.every_cache]
    return {
        "cache_id": [cache.manifest.cache_id for cache in prepared.data.every_cache],
        # A live teacher is among the options.
        **({"teacher": [teacher.spec for teacher in identities]} if identities else {}),
        "teacher_weights_sha256": [str(teacher.weights) for teacher in identities],
    }
