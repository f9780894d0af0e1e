"""The processes that train a sweep's cohorts, and who looks after them."""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

import softcache
from softcache.atomic import writer_name
from softcache.config.sweep import Specification
from softcache.device import pick_device
from softcache.errors import SoftcacheError
from softcache.remembered import process_settings
from softcache.stages._worker import Job
from softcache.sweeping.folder import LOGS, ManyFolder, read_cohort
from softcache.threads import NUMBER, usable_cores

POLL_S = 0.3
ENDS_S = 10.0  # a process that is asked to end has no more to do than to leave


def default_processes(device: str) -> int:
    """On CPUs one a core, each with one thread: of small students several processes train more than one with many
    threads. On a GPU one, which several would wait for."""
    return usable_cores() if pick_device(device).type == "cpu" else 1


@contextlib.contextmanager
def crew(
    many: ManyFolder, specification: Specification, anew: Mapping[str, Any], count: int
) -> Iterator[list[subprocess.Popen[str]]]:
    """``count`` processes that take cohorts; they end when this does."""
    processes: list[subprocess.Popen[str]] = []
    try:
        for number in range(count):
            processes.append(_start(many, specification, anew, number))
        yield processes
    finally:
        for process in processes:
            assert process.stdin is not None
            with contextlib.suppress(OSError):
                process.stdin.close()
            if process.poll() is None:
                process.terminate()
        for process in processes:
            try:
                process.wait(ENDS_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def watch(
    many: ManyFolder,
    processes: Sequence[subprocess.Popen[str]],
    names: Sequence[str],
    ended: Callable[[str], None],
    until: float = math.inf,
) -> list[str]:
    """Returns when all runs of these ``names`` have ended, and else at ``until`` on the monotonic clock with the names
    of those that haven't; ``ended`` is told of each that has.

    Errors: ``SoftcacheError`` where the processes end before that, and no process elsewhere is at it.
    """
    left = list(names)
    while True:
        alive = [process for process in processes if process.poll() is None]
        now = [name for name in left if many.outcome(name).ended]
        for name in now:
            left.remove(name)
            ended(name)
        if not left or time.monotonic() >= until:
            return left
        if not alive and not now and not _held_elsewhere(many, left):
            raise SoftcacheError(f"{len(left)} of {len(names)} students are not finished: {_last_words(many)}")
        time.sleep(POLL_S)


def _start(
    many: ManyFolder, specification: Specification, anew: Mapping[str, Any], number: int
) -> subprocess.Popen[str]:
    settings = process_settings()
    job = Job(str(many.path), specification.command, dict(anew), **settings, max_image_pixels=Image.MAX_IMAGE_PIXELS)
    environment = {**os.environ, **dict.fromkeys(NUMBER, str(specification.threads)), **_same_package()}
    log = many.path / LOGS / f"{writer_name().rpartition('~')[0]}-{number}.log"
    with open(log, "a", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "softcache.stages._worker"],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            text=True,
            env=environment,
        )
    assert process.stdin is not None
    process.stdin.write(json.dumps(job.__dict__) + "\n")
    process.stdin.flush()
    return process


def _same_package() -> dict[str, str]:
    """What makes a process import the softcache that this one has, also where a script has put it on its path."""
    root = Path(softcache.__file__).resolve().parents[1]
    if root.name in ("site-packages", "dist-packages"):
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))}


def _held_elsewhere(many: ManyFolder, left: Sequence[str]) -> bool:
    waiting = [cohort for cohort in many.cohorts() if any(name in left for name, _ in read_cohort(cohort))]
    return any(many.is_taken(cohort) for cohort in waiting)


def _last_words(many: ManyFolder) -> str:
    """The last line that a process of this command wrote."""
    logs = sorted((many.path / LOGS).glob("*.log"), key=lambda path: path.stat().st_mtime)
    lines = [line for line in logs[-1].read_text(errors="replace").splitlines() if line.strip()] if logs else []
    said = f", {logs[-1]} ends with: {lines[-1][:300]}" if lines else ""
    return f"their processes have ended{said}"
