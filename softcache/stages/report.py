"""A page to look at, of runs, sweeps and comparisons: ``softcache report``."""

from __future__ import annotations

import dataclasses
import datetime
import logging
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from softcache._version import __version__
from softcache.atomic import check_in_place, replace_file
from softcache.cache.reader import Cache
from softcache.config.eval import EvalConfig
from softcache.config.given import recorded_caches
from softcache.config.opening import Opening
from softcache.console import bar, counted, duration
from softcache.distributed import refuse_several
from softcache.errors import SoftcacheError, UsageError
from softcache.localfiles import local_path
from softcache.remembered import portable
from softcache.reporting.figure import require_matplotlib
from softcache.reporting.findings import Findings, Left, Section, findings_of
from softcache.reporting.numbers import difference, title, unit, with_unit
from softcache.reporting.page import MARK, Part, page, parts
from softcache.reporting.sections.comparison import gained
from softcache.reporting.students import Student, read_source
from softcache.stages._beside import refuse_cache
from softcache.stages._said import said_of, shown_student, split_cache

log = logging.getLogger(__name__)
OUT = "report.html"
SPLIT = "test"
KINDS = {"run": "run", "sweep": "sweep", "compare": "comparison"}


@dataclass(frozen=True)
class Reported:
    """The page's file, its bytes, the sections that it has, and why the others were left out, by their titles."""

    path: Path
    bytes: int
    sections: list[str]
    left: dict[str, str]
    seconds: float


def report(
    *runs: str,
    out: str = OUT,
    cache: str | Sequence[str] = (),
    teacher: str | None = None,
    dataset: str | None = None,
    data_dir: str | None = None,
    device: str = "auto",
    workers: int = -1,
) -> Reported:
    """Writes one HTML file about the students in ``runs``, the folders of runs, sweeps and comparisons, which needs no
    other file and no network.

    ``cache``: that the students were trained from, where it isn't found where they say, and one of the test split, for
    what the teacher says of it. ``teacher``, ``dataset``, ``data_dir``: where they aren't found. ``device``,
    ``workers``: of the networks that are run: the best student, one on labels alone, and the teacher.

    A page of softcache that is there is replaced. Errors: ``UsageError`` where another file has the name,
    ``SoftcacheError`` for folders that are none of the three, ``ModelError`` where ``cache`` or ``teacher`` isn't the
    teacher of the students, ``MissingExtraError`` without matplotlib.
    """
    began = time.monotonic()
    refuse_several("report")
    require_matplotlib()
    if not runs:
        raise UsageError("name the folders of runs, sweeps or comparisons that the report is about")
    path = _target(out)
    sources = [read_source(name) for name in runs]
    made = f"softcache {__version__}, {datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC"
    every = parts()
    with bar("report", len(every) + 1, "sections") as progress:
        names = (cache,) if isinstance(cache, str) else cache
        caches = [Opening().open(name, option="--cache") for name in names]
        findings = findings_of(sources, made)
        found, why = _training_cache(findings, caches)
        _refuse_idle(caches, found)
        _refuse_other_teachers(findings, caches, found)
        asked = EvalConfig(
            models=tuple(runs),
            cache=split_cache(caches, SPLIT),
            teacher=teacher,
            dataset=dataset,
            data_dir=data_dir,
            device=device,
            workers=workers,
        )
        findings = dataclasses.replace(findings, cache=found, no_cache=why)
        findings = dataclasses.replace(findings, said=said_of(findings, asked))
        progress.advance(1)
        done: list[tuple[Part, Section]] = []
        for part in every:
            done.append((part, part.section(findings)))
            progress.advance(1)
    content = page(_title(findings), _about(findings), _figures(findings), done)
    replace_file(path, content)
    left = {part.TITLE: one.why for part, one in done if isinstance(one, Left)}
    sections = [part.TITLE for part, one in done if not isinstance(one, Left)]
    return Reported(path, len(content), sections, left, time.monotonic() - began)


def _target(out: str) -> Path:
    """Errors: ``UsageError`` for a file that isn't a report, and where there is no folder for it."""
    path = local_path(out, "--out")
    if path.is_dir():
        raise UsageError(f"--out {out} is a folder: name a file, such as {os.path.join(out, OUT)}")
    if not path.parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {path.parent}")
    check_in_place(path)
    if path.exists():
        with open(path, "rb") as file:
            if MARK not in file.read(2048):
                raise UsageError(f"{out} is there and is no report of softcache: name another file with --out")
    return path


def _training_cache(findings: Findings, caches: Sequence[Cache]) -> tuple[Cache | None, str]:
    """The first cache of the best setting, or a sentence on why there is none."""
    first = findings.best.students[0] if findings.best is not None else None
    if first is None or first.record is None or not first.record.caches:
        return None, "No student that is done was trained from a cache."
    wanted = first.record.caches[0].get("cache_id")
    for cache in caches:
        if cache.manifest.cache_id == wanted:
            return cache, ""
    try:
        cache = _recorded_cache(first)
    except SoftcacheError as error:
        return None, f"The cache that the students were trained from isn't at hand: {error}; name it with --cache."
    if cache.manifest.cache_id != wanted:
        return None, f"{cache.where} is another cache by now than the students were trained from: name it with --cache."
    return cache, ""


def _refuse_idle(caches: Sequence[Cache], used: Cache | None) -> None:
    """Errors: ``UsageError`` for a cache that was named and says nothing of these students."""
    for cache in caches:
        if cache is not used and cache.manifest.identity.dataset.split != SPLIT:
            raise UsageError(
                f"--cache {cache.where} is neither the cache that the students were trained from nor one of the "
                f"{SPLIT} split: it is of the {cache.manifest.identity.dataset.split} split, and its id is "
                f"{cache.manifest.cache_id[:12]}…"
            )


def _refuse_other_teachers(findings: Findings, caches: Sequence[Cache], used: Cache | None) -> None:
    """Errors: ``ModelError`` for a cache of the test split that none of the teachers made that the students learnt from
    whom the report looks into."""
    first = shown_student(findings)
    for cache in caches:
        if cache is not used and first is not None and first.record is not None:
            refuse_cache(first.folder, first.record, cache)


def _recorded_cache(student: Student) -> Cache:
    """Errors: ``NotNamedError`` for a path that the user never gave for this run."""
    assert student.record is not None
    named = recorded_caches(student.folder, student.record.options)
    if not named:
        raise SoftcacheError(f"{student.folder} doesn't say where it is")
    return Opening().open(named[0])


def _title(findings: Findings) -> str:
    if len(findings.sources) == 1:
        return findings.sources[0].folder.resolve().name
    return f"{len(findings.sources)} folders of runs"


def _about(findings: Findings) -> str:
    kinds = [source.kind for source in findings.sources]
    counts = [counted(kinds.count(kind), name) for kind, name in KINDS.items() if kind in kinds]
    what = " and ".join(counts) if len(kinds) > 1 else f"a softcache {kinds[0].replace('run', 'train')}"
    record = findings.best.students[0].record if findings.best is not None else None
    spec = (record.data or {}).get("spec") if record is not None else None
    data = f" on {portable(str(spec))}" if spec is not None else ""
    students = counted(len(findings.students), "student")
    settings = f" in {counted(len(findings.settings), 'setting')}" if len(findings.settings) > 1 else ""
    return f"{students}{settings} of {what}{data}, {findings.made.partition(', ')[2]}"


def _figures(findings: Findings) -> list[tuple[str, str, str]]:
    """The numbers that the page begins with."""
    best, leading = findings.best, findings.leading
    if best is None:
        return []
    found: list[tuple[str, str, str]] = []
    on = "test" if best.scores("test") else "val"
    where = "test split" if on == "test" else "held-out rows"
    values = list(best.scores(on).values())
    if values:
        students = f"mean of {len(values)} students" if len(values) > 1 else "one student"
        found.append(
            (f"{title(leading)}, {where}", with_unit(leading, statistics.mean(values)), f"{best.text}; {students}")
        )
    gain = gained(findings).get(id(best))
    if gain is not None:
        points = " points" if unit(leading) else ""
        found.append(
            ("gain over labels alone", difference(leading, gain.mean) + points, _sure(leading, gain.half_width))
        )
    found += [(f"teacher, {title(leading)}", with_unit(leading, v), n) for n, v in list(findings.teachers.items())[:1]]
    seconds = [own.seconds for own in best.students if own.seconds is not None]
    if seconds:
        how = "with the teacher running" if best.students[0].online else "without a teacher running"
        found.append(("training of a student", duration(statistics.mean(seconds)), how))
    return found


def _sure(leading: str, half: float | None) -> str:
    if half is None:
        return "one pair of students"
    return f"± {difference(leading, half).lstrip('+')} with 95 % confidence"
