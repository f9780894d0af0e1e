"""The folder of many runs: cohorts that processes take, each at a time, and what each run came to.

``cohorts/0000.json`` names the runs of a cohort with their options. Whoever trains it holds ``cohorts/0000.lock``. A
run is done when its ``config.json`` has a result, and has failed when there is ``failed.json`` beside it. Nothing else
says what is done, so a process that is killed loses what its students have learnt since their last checkpoints.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softcache import strictjson
from softcache.atomic import replace_file
from softcache.config.folders import make_folder
from softcache.config.record import CONFIG, read_record
from softcache.errors import LockedError, PrunedError, SoftcacheError
from softcache.locks import is_held, locked
from softcache.sweeping.grid import Run

COHORTS, ROUNDS, RUNS, LOGS, CACHES = "cohorts", "rounds", "runs", "logs", "caches"
CLOSED, FAILED = "closed", "failed.json"
LOCK = ".lock"  # held by the command that is at work on the folder
VERSION = 1


@dataclass(frozen=True)
class Outcome:
    """What a run came to: ``result``, that of its record, once it is finished; ``error``, why it failed or, with
    ``pruned``, why it ended early."""

    result: dict[str, Any] | None = None
    error: str | None = None
    pruned: bool = False

    @property
    def ended(self) -> bool:
        return self.result is not None or self.error is not None

    @property
    def leading(self) -> str:
        """The number that is compared: ``top1``, ``map``, …"""
        assert self.result is not None
        return next(name for name in self.result if name.startswith("val_")).removeprefix("val_")

    @property
    def val(self) -> float | None:
        """That number on the held-out rows."""
        return None if self.result is None else self.result[f"val_{self.leading}"]

    @property
    def test(self) -> float | None:
        """That number on the test split, where it was looked at."""
        return None if self.result is None else self.result.get(f"test_{self.leading}")


class ManyFolder:
    """The folder ``path`` of many runs."""

    def __init__(self, path: Path):
        self.path = path
        self._outcomes: dict[str, Outcome] = {}
        self._seen: dict[str, tuple[int, ...]] = {}

    def run_folder(self, name: str) -> Path:
        return self.path / RUNS / name

    def prepare(self) -> None:
        for name in (COHORTS, RUNS, LOGS):
            make_folder(self.path / name)

    def add_cohort(self, number: int, runs: Sequence[Run], bars: Mapping[int, float] | None = None) -> None:
        """Puts a cohort where processes take it. One that is there already stays as it is. ``bars``: after so many
        epochs, the score on held-out rows that a student needs to go on."""
        path = self.path / COHORTS / f"{number:04d}.json"
        if not path.exists():
            entries = [{"name": run.name, "options": run.options} for run in runs]
            document = {"version": VERSION, "runs": entries, "bars": {str(k): bar for k, bar in (bars or {}).items()}}
            replace_file(path, (json.dumps(document, indent=1) + "\n").encode())

    def close(self) -> None:
        """No more cohorts will come."""
        replace_file(self.path / COHORTS / CLOSED, b"")

    @property
    def closed(self) -> bool:
        return (self.path / COHORTS / CLOSED).exists()

    @property
    def is_tended(self) -> bool:
        """Whether a command is at work on the folder, which may add cohorts."""
        return is_held(self.path / LOCK)

    def reopen(self) -> None:
        """For a command that goes on: more cohorts may come, and what has failed is tried again."""
        (self.path / COHORTS / CLOSED).unlink(missing_ok=True)
        for path in self.path.glob(f"{RUNS}/*/{FAILED}"):
            if not self._read(path.parent).pruned:
                path.unlink(missing_ok=True)

    def cohorts(self) -> list[Path]:
        return sorted((self.path / COHORTS).glob("[0-9]*.json"))

    @contextlib.contextmanager
    def taken(self, cohort: Path) -> Iterator[bool]:
        """Holds a cohort; gives False where another process does."""
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(locked(cohort.with_suffix(".lock"), f"{cohort} is being trained", wait=0))
            except LockedError:
                yield False
                return
            yield True

    def is_taken(self, cohort: Path) -> bool:
        return is_held(cohort.with_suffix(".lock"))

    def outcome(self, name: str) -> Outcome:
        """What a run came to, as far as it is known. Files that are as they were aren't read again."""
        folder = self.run_folder(name)
        stamps = tuple(_stamp(folder / file) for file in (CONFIG, FAILED))
        if self._seen.get(name) != stamps:
            self._outcomes[name], self._seen[name] = self._read(folder), stamps
        return self._outcomes[name]

    def fail(self, name: str, error: SoftcacheError) -> None:
        """Keeps why a run failed, so that it isn't tried again by every process."""
        folder = self.run_folder(name)
        make_folder(folder)
        document = {"version": VERSION, "error": str(error), "pruned": isinstance(error, PrunedError)}
        replace_file(folder / FAILED, (json.dumps(document, ensure_ascii=False) + "\n").encode())

    @staticmethod
    def _read(folder: Path) -> Outcome:
        if (folder / FAILED).exists():
            failure = _document(folder / FAILED)
            return Outcome(error=str(failure.get("error")), pruned=failure.get("pruned") is True)
        result = read_record(folder).result if (folder / CONFIG).exists() else None
        return Outcome(result)


def read_cohort(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Names of the runs of a cohort, and their options.

    Errors: ``SoftcacheError`` where the file isn't one of a cohort.
    """
    document = _document(path)
    try:
        runs = [(entry["name"], dict(entry["options"])) for entry in document["runs"]]
    except (KeyError, TypeError, ValueError):
        raise SoftcacheError(f"{path} doesn't name the runs of a cohort") from None
    for name, _ in runs:
        if not isinstance(name, str) or Path(name).name != name or name.startswith("."):
            raise SoftcacheError(f"{path}: {str(name)[:40]!r} is not the name of a run")
    return [(name, {n: tuple(v) if isinstance(v, list) else v for n, v in options.items()}) for name, options in runs]


def held_out(lines: Sequence[Mapping[str, Any]]) -> list[float]:
    """The scores on held-out rows in the lines of a run's ``metrics.jsonl``, of those epochs that have one."""
    names = ("val_top1", "val_map", "val_r2", "val_cosine")  # the first that is there is the one that chooses
    name = next((name for name in names if any(line.get(name) is not None for line in lines)), "")
    return [line[name] for line in lines if line.get(name) is not None]


def read_bars(path: Path) -> dict[int, float]:
    """The bars of a cohort, see ``add_cohort``.

    Errors: ``SoftcacheError`` where the file isn't one of a cohort.
    """
    try:
        return {int(epochs): float(bar) for epochs, bar in _document(path)["bars"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise SoftcacheError(f"{path} doesn't name the bars of a cohort") from None


def _stamp(path: Path) -> int:
    """Changes when a file is replaced; 0 where there is none."""
    try:
        status = path.stat()
    except OSError:
        return 0
    return hash((status.st_ino, status.st_mtime_ns))


def _document(path: Path) -> dict[str, Any]:
    try:
        document = strictjson.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise SoftcacheError(f"{path} can't be read: {error}") from None
    if not isinstance(document, dict) or document.get("version") != VERSION:
        raise SoftcacheError(f"{path} is not of version {VERSION}, which this softcache knows")
    return document
