"""What a report is about: everything that its sections are made from, read once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from softcache.config.train import TrainConfig
from softcache.errors import UsageError
from softcache.remembered import portable
from softcache.reporting.elements import Element
from softcache.reporting.settings import Setting, settings_of
from softcache.reporting.students import Source, Student, recorded
from softcache.sweeping.settings import COMMON

if TYPE_CHECKING:
    from softcache.cache.reader import Cache
    from softcache.evaluating.predictions import Predictions
    from softcache.views._open import Viewed

T = 4.0  # at which the teacher's targets are shown where no student was trained at one temperature


@dataclass(frozen=True)
class Left:
    """A section that can't be made: ``why``, and how to have it, as whole sentences."""

    why: str


@dataclass(frozen=True)
class Said:
    """What networks say of a split's clean rows. ``viewed``: the split; ``student``: the best setting's first,
    ``alone``: the first on labels alone, ``teacher``, a network of the name ``teacher_name``; ``missing``: why one of
    these isn't there, by the same names."""

    viewed: Viewed | None = None
    student: Predictions | None = None
    alone: Predictions | None = None
    teacher: Predictions | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    teacher_name: str = ""

    def why(self, name: str) -> str:
        """A sentence on what isn't there."""
        return self.missing.get(name, "")


@dataclass(frozen=True)
class Findings:
    """``settings``: all of them; ``best``: the one that the report looks into; ``chosen_by``: how it was chosen, as the
    end of a sentence; ``chosen``: names of the runs that a sweep chose, which may be others; ``alone``: the setting on
    labels alone beside it; ``leading``: the score that is compared (``top1``); ``cache``: that the best was trained
    from, and ``no_cache`` why it isn't there. ``made``: when."""

    sources: list[Source]
    settings: list[Setting]
    best: Setting | None
    chosen_by: str
    alone: Setting | None
    leading: str
    made: str
    cache: Cache | None = None
    no_cache: str = ""
    said: Said = field(default_factory=Said)
    chosen: frozenset[str] = frozenset()

    def is_chosen(self, setting: Setting) -> bool:
        """Whether it is the one that a sweep chose or, where none has chosen yet, the one that is looked into."""
        if not self.chosen:
            return setting is self.best
        return any(student.name in self.chosen for student in setting.students)

    @property
    def students(self) -> list[Student]:
        return [student for setting in self.settings for student in setting.students]

    @property
    def teachers(self) -> dict[str, float]:
        """Scores on the test split, by the teacher's name: that a comparison knows of, or else of what it says here."""
        known = {name: score for source in self.sources for name, score in source.teachers.items()}
        if known or self.said.teacher is None:
            return known
        return {portable(self.said.teacher_name): accuracy(self.said.teacher)}

    @property
    def on(self) -> str:
        """What settings are compared on: ``val`` where any has held-out rows, else ``test``."""
        return "val" if any(setting.scores("val") for setting in self.settings) else "test"

    @property
    def temperature(self) -> float:
        """That of the best setting, where it is one number."""
        for value in (self.best.option("T") if self.best else None, *self._recorded_temperatures()):
            try:
                number = float(str(value))
            except (TypeError, ValueError):
                continue
            if 0 < number < 1e6:
                return number
        return T

    def _recorded_temperatures(self) -> Sequence[object]:
        record = self.best.students[0].record if self.best else None
        return [term.get("T") for term in record.losses if isinstance(term, dict)] if record else []


def accuracy(found: Predictions) -> float:
    """The share of labelled rows whose top class is the label, in 0..1."""
    from softcache.evaluating.measures import confusion

    counted = confusion(found.logits, found.labels)
    return float(counted.diagonal().sum() / counted.sum().clamp_min(1))


def findings_of(sources: Sequence[Source], made: str) -> Findings:
    """Without a cache and predictions. A folder that is named twice, or lies in another that is named, counts once.

    Errors: ``UsageError`` for runs of different data.
    """
    several = len(sources) > 1
    students: dict[str, Student] = {}
    for source in sources:
        for student in source.students:
            # Options as a sweep was asked for them can't be compared with those that other runs have recorded.
            students.setdefault(str(student.folder.resolve()), recorded(student) if several else student)
    _refuse_several_datasets(list(students.values()))
    settings = settings_of(list(students.values()), by_record=several)
    chosen = frozenset(sources[0].chosen) if len(sources) == 1 else frozenset()
    chosen &= {student.name for student in students.values()}
    best, chosen_by = _best(settings, chosen)
    leading = next((s.outcome.leading for s in students.values() if s.outcome.result is not None), "")
    return Findings(
        list(sources), settings, best, chosen_by, alone_beside(settings, best), leading, made, chosen=chosen
    )


def _refuse_several_datasets(students: Sequence[Student]) -> None:
    """Errors: ``UsageError``. A dataset may have been read from several places."""
    found: dict[tuple[str, str], str] = {}
    for student in students:
        if student.record is not None and student.record.data is not None:
            spec = portable(str(student.record.data.get("spec")))
            found.setdefault((spec, student.fingerprint), spec)
    prints = {fingerprint for _, fingerprint in found if fingerprint}
    if len({spec for spec, _ in found}) > 1 or len(prints) > 1:
        names = [spec if list(found.values()).count(spec) == 1 else f"{spec} {own[:8]}…" for spec, own in found]
        raise UsageError(f"these runs are of different data ({', '.join(names)}): make a report for each")


def _best(settings: Sequence[Setting], chosen: frozenset[str]) -> tuple[Setting | None, str]:
    """The setting that is looked into, never chosen by the test split."""
    distilled = [own for own in settings if not own.alone and any(s.outcome.result for s in own.students)]
    if not distilled:
        done = [own for own in settings if any(s.outcome.result for s in own.students)]
        return (done[0], "it is the first that is done") if done else (None, "")
    picked = next((own for own in settings if any(student.name in chosen for student in own.students)), None)
    if picked is not None and not picked.alone:
        return picked, "the sweep chose it by its mean on held-out rows"
    best, why = _best_distilled(distilled)
    return best, f"{why}, of those that learn from a teacher; the sweep chose labels alone" if picked else why


def _best_distilled(distilled: Sequence[Setting]) -> tuple[Setting, str]:
    complete = [own for own in distilled if own.complete and own.scores("val")]
    if complete:
        return max(complete, key=lambda own: own.mean("val") or 0.0), "it has the highest mean on held-out rows"
    begun = [own for own in distilled if own.scores("val")]
    if begun:
        best = max(begun, key=lambda own: own.mean("val") or 0.0)
        return best, "it has the highest mean on held-out rows so far, with not all of its students done"
    if len(distilled) == 1:
        return distilled[0], "it is the only one that learns from a teacher"
    return distilled[0], "it is the first that learns from a teacher, as no rows were held out to choose by"


def alone_beside(settings: Sequence[Setting], setting: Setting | None) -> Setting | None:
    """The setting on labels alone that differs from ``setting`` in nothing that a gain would be taken for."""
    found = [own for own in settings if own.alone and own is not setting]
    if setting is None:
        return found[0] if found else None
    return next((own for own in found if _common(own) == _common(setting)), None)


def _common(setting: Setting) -> list[object]:
    defaults = TrainConfig()
    found = [setting.option(name) for name in COMMON]
    return [getattr(defaults, name) if value is None else value for name, value in zip(COMMON, found, strict=True)]


Section = Element | Left
