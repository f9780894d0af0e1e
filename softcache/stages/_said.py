"""What the students of a report and their teacher say of the split that they are judged by."""

from __future__ import annotations

from collections.abc import Sequence

from softcache.cache.reader import Cache
from softcache.config.eval import EvalConfig
from softcache.device import pick_device, reproducible
from softcache.errors import SoftcacheError
from softcache.evaluating.predictions import Predictions
from softcache.reporting.findings import Findings, Said
from softcache.reporting.students import Student
from softcache.stages._beside import Teacher, Teachers
from softcache.stages._subject import Opener, Subject

WHO = ("student", "alone", "teacher")
NO_ALONE = (
    "No student on labels alone that can be compared is among these runs, so what the teacher is worth to each class "
    "can't be seen: softcache compare trains both."
)


def split_cache(caches: Sequence[Cache], split: str) -> str | None:
    """The one of these caches that is of the split, by the name that opens it."""
    return next((cache.place for cache in caches if cache.manifest.identity.dataset.split == split), None)


def said_of(findings: Findings, asked: EvalConfig) -> Said:
    """The best setting's first student that is done, the first on labels alone, and the teacher: three networks,
    however many students there are. What can't be had is left out with its reason.

    Errors: ``ModelError`` where a teacher was named and isn't that of the students, or can't be opened.
    """
    if findings.best is None or findings.leading != "top1":
        why = "No student is done yet." if findings.best is None else "The labels are no classes."
        return Said(missing=dict.fromkeys(WHO, why))
    opener = Opener(asked, pick_device(asked.device))
    teachers = Teachers(opener)
    with reproducible(tf32=asked.tf32):
        try:
            subject = opener.subject(str(_done(findings.best.students).folder))
        except SoftcacheError as error:
            return Said(missing=dict.fromkeys(WHO, _no_student(asked, error)))
        # What the user named is refused, not left out; and before anything is computed.
        teachers.refuse_others([subject.model])
        try:
            (student,) = opener.say([subject])
        except SoftcacheError as error:
            return Said(missing=dict.fromkeys(WHO, _no_student(asked, error)))
        found: dict[str, Predictions] = {"student": student}
        missing: dict[str, str] = {}
        name = ""
        if findings.alone is None:
            missing["alone"] = NO_ALONE
        else:
            alone = _done(findings.alone.students)
            try:
                (found["alone"],) = opener.say([opener.subject(str(alone.folder))])
            except SoftcacheError as error:
                missing["alone"] = f"The student in {alone.folder} can't be run: {error}."
        try:
            teacher = _of_teacher(findings, asked, teachers, subject)
            found["teacher"], name = teacher.said, teacher.name
        except SoftcacheError as error:
            missing["teacher"] = f"What the teacher says of the {asked.split} split isn't at hand: {error}."
    return Said(subject.split.viewed, missing=missing, teacher_name=name, **found)


def shown_student(findings: Findings) -> Student | None:
    """The one that the report looks into: of the best setting the first that is done."""
    return None if findings.best is None else _done(findings.best.students)


def _no_student(asked: EvalConfig, error: SoftcacheError) -> str:
    return f"The student or its {asked.split} split isn't at hand: {error}."


def _done(students: Sequence[Student]) -> Student:
    """The first that is done."""
    return next((own for own in students if own.outcome.result is not None), students[0])


def _of_teacher(findings: Findings, asked: EvalConfig, teachers: Teachers, subject: Subject) -> Teacher:
    """That of what was named, of the cache that the students were trained from, or of their live teacher."""
    if findings.cache is not None and asked.cache is None and asked.teacher is None:
        return teachers.of_cache(findings.cache, subject.split)
    recorded = subject.record is not None and subject.record.caches
    if recorded and findings.no_cache and asked.cache is None and asked.teacher is None and not _online(subject):
        raise SoftcacheError(
            "the cache that says who it is can't be opened; name it, or one of the split, with --cache"
        )
    found = teachers.of(subject)
    if found is None:
        raise SoftcacheError("the students weren't trained by one; --teacher names one that they are compared with")
    return found


def _online(subject: Subject) -> bool:
    return subject.options is not None and subject.options.online
