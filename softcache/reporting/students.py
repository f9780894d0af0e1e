"""What the folder of a run, a sweep or a comparison says of its students; nothing that it names is opened."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from softcache import strictjson
from softcache.config.record import CONFIG, Record, is_number, read_record
from softcache.config.sweep import Specification, read_specification, specification_file
from softcache.errors import SoftcacheError, UsageError
from softcache.localfiles import local_path
from softcache.losses._schedule import Schedule
from softcache.sweeping.folder import ManyFolder, Outcome, read_cohort
from softcache.training.metrics import METRICS

TABLE = "table.json"
MANY = ("sweep", "compare")
SEARCHED, AGAIN = "search", "fresh seeds"
_NUMBERED = re.compile(r"(-seed\d+)?-[0-9a-f]{8}$")


@dataclass(frozen=True)
class Student:
    """A run. ``asked``: its options, in a sweep as they were asked for, else as they are recorded; ``lines``: of
    ``metrics.jsonl``; ``row``: of a comparison what it is, else empty; ``phase``: of a search whether it was tried or
    trained again; ``source``: the folder that was named; ``together``: students of its loop, which share its time."""

    name: str
    folder: Path
    source: Path
    seed: int
    asked: Mapping[str, Any]
    record: Record[Any] | None
    outcome: Outcome
    lines: list[dict[str, Any]]
    row: str = ""
    phase: str = ""
    together: int = 1

    @property
    def alone(self) -> bool:
        """Whether it learns from labels alone: no loss and no hint loss has a weight."""
        alpha = self.asked.get("alpha")
        if alpha is None or self.asked.get("hint") or self.asked.get("online"):
            return False
        try:
            return Schedule.parse(str(alpha)).bounds() == (0.0, 0.0)
        except UsageError:  # of a file that anyone may have written
            return False

    @property
    def online(self) -> bool:
        """Whether its teacher ran in its training."""
        return bool(self.asked.get("online"))

    @property
    def teacher_seconds(self) -> float:
        """Of the time of its epochs so far what its live teacher took."""
        values = (_number(line.get("teacher_s")) for line in self.lines)
        return sum(value for value in values if value is not None) / self.together

    @property
    def fingerprint(self) -> str:
        """That of the data that it was trained on, empty where it isn't recorded."""
        data = self.record.data if self.record is not None else None
        return str((data or {}).get("fingerprint") or "")

    @property
    def seconds(self) -> float | None:
        """Its share of the time of its training, once it is finished."""
        taken = _number((self.outcome.result or {}).get("seconds"))
        return None if taken is None else taken / self.together

    @property
    def epochs_seconds(self) -> float:
        """Its share of the time of all epochs so far, with the evaluations between them."""
        values = (_number(line.get(name)) for line in self.lines for name in ("epoch_s", "eval_s"))
        return sum(value for value in values if value is not None) / self.together

    @property
    def samples(self) -> int:
        """Samples that it was trained on, over all epochs so far."""
        return sum(int(_number(line.get("samples")) or 0) for line in self.lines)


@dataclass(frozen=True)
class Source:
    """A folder that was named, with its students. ``specification``: of a sweep or a comparison; ``chosen``: names of
    the runs that a sweep chose; ``teachers``: of a comparison, name → score on the test split."""

    folder: Path
    students: list[Student]
    specification: Specification | None = None
    chosen: tuple[str, ...] = ()
    teachers: Mapping[str, float] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """``run``, ``sweep`` or ``compare``."""
        return "run" if self.specification is None else self.specification.command


def read_source(named: str) -> Source:
    """Errors: ``SoftcacheError`` where the folder is none of the three, and where its files can't be read."""
    folder = local_path(named, "the run")
    for command in MANY:
        if specification_file(folder, command).exists():
            return _many(folder, read_specification(folder, command))
    if not folder.is_dir():
        raise SoftcacheError(f"there is no folder {folder}: name that of a run, a sweep or a comparison")
    if not (folder / CONFIG).exists():
        raise SoftcacheError(f"{folder} is no run, sweep or comparison: it has no {CONFIG}, sweep.json or compare.json")
    record = read_record(folder)
    if record.command != "train":
        raise SoftcacheError(f"{folder} is a teacher: name the runs of its students; softcache eval measures a teacher")
    options = record.options.to_json()
    outcome = Outcome(record.result)
    name = folder.resolve().name
    own = Student(name, folder, folder, _seed(options), options, record, outcome, read_lines(folder / METRICS))
    return Source(folder, [own])


def _many(folder: Path, specification: Specification) -> Source:
    many, document = ManyFolder(folder), _document(folder / TABLE)
    comparing = specification.command == "compare"
    again = set(_names(document.get("rows"))) if "searched" in document else set()
    students = []
    for name, options, together in _runs(many):
        own = many.run_folder(name)
        record = read_record(own) if (own / CONFIG).exists() else None
        row = _NUMBERED.sub("", name).replace("-", " ") if comparing else ""
        phase = (AGAIN if name in again else SEARCHED) if again else ""
        found = many.outcome(name), read_lines(own / METRICS)
        students.append(Student(name, own, folder, _seed(options), options, record, *found, row, phase, together))
    if not students:
        raise SoftcacheError(f"{folder} has no students yet: wait until its softcache {specification.command} has some")
    chosen = document.get("chosen")
    teachers = document.get("teachers")
    return Source(
        folder,
        students,
        specification,
        tuple(_names([chosen])),
        {str(k): v for k, v in teachers.items() if _number(v) is not None} if isinstance(teachers, dict) else {},
    )


def recorded(student: Student) -> Student:
    """With the options that its record has, which say all of them, in place of those that were asked for."""
    if student.record is None:
        return student
    return dataclasses.replace(student, asked=student.record.options.to_json())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``; one that is being written is left out."""
    try:
        written = path.read_bytes()
    except OSError:
        return []
    found = []
    for line in written.splitlines():
        try:
            parsed = strictjson.loads(line)
        except ValueError:
            continue
        if isinstance(parsed, dict):
            found.append(parsed)
    return found


def _runs(many: ManyFolder) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Name, options, and how many are trained in one loop with it."""
    seen = set()
    for cohort in many.cohorts():
        runs = read_cohort(cohort)
        for name, options in runs:
            if name not in seen:
                seen.add(name)
                yield name, options, len(runs)


def _document(path: Path) -> dict[str, Any]:
    """What the table of a sweep says; nothing where it isn't finished."""
    try:
        document = strictjson.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise SoftcacheError(f"{path} can't be read: {error}") from None
    return document if isinstance(document, dict) else {}


def _names(rows: Any) -> Sequence[str]:
    """Those of the runs in rows of a table."""
    if not isinstance(rows, list):
        return []
    found = [row.get("runs") for row in rows if isinstance(row, dict)]
    return [str(name) for names in found if isinstance(names, list) for name in names]


def _seed(options: Mapping[str, Any]) -> int:
    seed = options.get("seed", 0)
    return seed if type(seed) is int else 0


def _number(value: Any) -> float | None:
    return float(value) if is_number(value) else None
