"""Students that differ in nothing but the seed, together: a setting, and what settings differ in."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from softcache import registry
from softcache.config.resume import MOVABLE
from softcache.config.several import GRID
from softcache.errors import SoftcacheError
from softcache.losses._terms import parse_term
from softcache.remembered import is_plain, portable
from softcache.reporting.students import Student
from softcache.sweeping.grid import shown

# Options that say where and how a student is trained, and nothing of what it learns.
_INDIFFERENT = frozenset({*MOVABLE, "seed", "out", "resume", "test", "log_every", "verify_reads", "at_once"})
# What a setting and labels alone must have in common for a gain to be the teacher's.
COMMON = ("student", "label_fraction", "val_fraction", "order_seed")


@dataclass(frozen=True)
class Setting:
    """``varied``: option → value, of those that aren't the same in all settings; ``students``: at least one, of
    different seeds."""

    varied: dict[str, str]
    students: list[Student]
    row: str = ""
    phase: str = ""

    @property
    def alone(self) -> bool:
        """Whether it learns from labels alone."""
        return self.students[0].alone

    def scores(self, on: str) -> dict[int, float]:
        """Seed → score ``on`` the held-out rows (``val``) or the ``test`` split, of the students that have one."""
        found = {}
        for student in self.students:
            value = (student.outcome.val if on == "val" else student.outcome.test) if student.outcome.result else None
            if value is not None:
                found[student.seed] = float(value)
        return found

    def mean(self, on: str) -> float | None:
        """Of its scores, None without any."""
        values = list(self.scores(on).values())
        return statistics.mean(values) if values else None

    @property
    def complete(self) -> bool:
        """Whether all of its students are done."""
        return all(student.outcome.result is not None for student in self.students)

    @property
    def text(self) -> str:
        """What it is, in a line."""
        if self.row or not self.varied:
            return "labels alone" if self.alone else self.row or "distilled"
        return ", ".join(f"{told_option(n)} {v}" for n, v in self.varied.items() if v != "–") or "labels alone"

    def option(self, name: str) -> Any:
        """As its first student's record has it, settled; else as it was asked for."""
        first = self.students[0]
        options = first.record.options if first.record is not None else None
        return getattr(options, name) if options is not None else first.asked.get(name)


def grouped(students: Sequence[Student]) -> list[Setting]:
    """Settings in the order of their first students."""
    groups: dict[str, list[Student]] = {}
    for student in students:
        key = [student.row, student.phase, {n: v for n, v in student.asked.items() if n not in _INDIFFERENT}]
        groups.setdefault(json.dumps(key, sort_keys=True, default=str), []).append(student)
    # Students on labels alone have no loss, no T and a rate of their own: that sets them apart, and no options do.
    firsts = [members[0] for members in groups.values()]
    differing = {name for alone in (False, True) for name in _differing(firsts, alone)}
    names = _ordered(differing | {n for n in COMMON if len({str(one.asked.get(n)) for one in firsts}) > 1})
    if all(first.row for first in firsts):
        names = []  # the rows of a comparison have names
    found = []
    for members in groups.values():
        first = members[0]
        varied = {name: told_value(name, first.asked.get(name)) for name in names}
        found.append(Setting(varied, members, first.row, first.phase))
    return found


def _differing(students: Sequence[Student], alone: bool) -> set[str]:
    """Names of options that aren't the same in all of those that learn from labels alone, or of the others."""
    options = [student.asked for student in students if student.alone == alone]
    names = {name for one in options for name in one} - _INDIFFERENT
    return {n for n in names if len({json.dumps(one.get(n), sort_keys=True, default=str) for one in options}) > 1}


def _ordered(names: set[str]) -> list[str]:
    """In the order of a sweep's table and then of their names."""
    return [name for name in GRID if name in names] + sorted(names - set(GRID))


def told_option(name: str) -> str:
    """An option's name as it is read: ``batch size``."""
    return name.replace("_", " ")


def told_value(name: str, value: Any) -> str:
    """A value of an option as a table has it; a dash for none."""
    if value is None or value == () or value == []:
        return "–"
    if isinstance(value, (list, tuple)):
        return " + ".join(told_value(name, one) for one in value)
    if name == "loss":
        return _spelled(str(value))
    if name in ("student", "dataset", "cache", "teacher", "hint_cache", "strong_cache"):
        text = portable(str(value))
        return text.rstrip("/").rpartition("/")[2] if not is_plain(name, text) and ":" not in text else text
    return shown(value)


def _spelled(spec: str) -> str:
    """A loss of softcache without the options that are its defaults; code of somebody's own is not looked at."""
    name = spec.partition(":")[0]
    if not is_plain("loss", spec) or name not in registry.names("losses"):
        return portable(spec)
    try:
        term, bare = parse_term(spec), parse_term(name)
    except SoftcacheError:
        return spec
    defaults = {field.name: getattr(bare.loss, field.name) for field in dataclasses.fields(bare.loss)}
    parts = [part for part in str(term).partition(":")[2].split(",") if part]
    kept = [part for part in parts if not _is_default(part, defaults)]
    return name + (":" + ",".join(kept) if kept else "")


def _is_default(part: str, defaults: Mapping[str, Any]) -> bool:
    option, _, value = part.partition("=")
    default = defaults.get(option)
    return default is not None and (value == str(default) or (isinstance(default, float) and value == f"{default:g}"))
