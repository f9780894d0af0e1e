"""Students that differ in nothing but the seed, together: a setting, and what settings differ in."""

from __future__ import annotations

import statistics
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from softcache.reporting.students import Student
from softcache.sweeping.settings import grouped, setting_of, varied


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


def settings_of(students: Sequence[Student], *, by_record: bool) -> list[Setting]:
    """Settings in the order of their first students. ``by_record``: whether students are told apart by what their
    records say; else by the options that a sweep was asked for, which those that haven't begun have too."""
    settings = [setting_of(one.asked, one.record if by_record else None) for one in students]
    keys: list[Hashable | dict[str, Any]] = [
        {"row": one.row, "phase": one.phase, "setting": setting}
        for one, setting in zip(students, settings, strict=True)
    ]
    groups = grouped(list(zip(students, settings, strict=True)), keys)
    firsts = [group[0] for group in groups]
    told = varied([setting for _, setting in firsts], [first.alone for first, _ in firsts])
    named = all(first.row for first, _ in firsts)  # the rows of a comparison have names
    return [
        Setting({} if named else own, [student for student, _ in group], first.row, first.phase)
        for group, (first, _), own in zip(groups, firsts, told, strict=True)
    ]


def told_option(name: str) -> str:
    """An option's name as it is read: ``batch size``."""
    return name.replace("_", " ")
