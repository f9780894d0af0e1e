"""Where it all comes from: commands, caches, data, versions."""

from __future__ import annotations

from typing import Any

from softcache.cache.description import pin_of
from softcache.reporting.elements import Child, Element, definitions, element
from softcache.reporting.findings import Findings, Section
from softcache.reporting.students import Student
from softcache.sweeping.command import train_command

PLACE = 90
TITLE = "Provenance"


def section(findings: Findings) -> Section:
    facts: list[tuple[str, Child]] = [("this page", findings.made)]
    facts += [(_kind(source.kind), str(source.folder.resolve())) for source in findings.sources]
    best = findings.best.students[0] if findings.best is not None else None
    threads = [source.specification.threads for source in findings.sources if source.specification is not None]
    if best is not None:
        command = train_command(_given(best), threads[0] if len(set(threads)) == 1 else None)
        facts.append(("the student again", element("pre", command)))
        facts += _of_run(best)
    cache = findings.cache
    if cache is None:
        facts.append(("cache", findings.no_cache))
    else:
        identity, made = cache.manifest.identity, cache.manifest.state.made
        facts += [
            ("cache", cache.place),
            ("cache id", element("code", cache.manifest.cache_id)),
            ("pin", element("code", pin) if (pin := pin_of(cache)) else "none: softcache copy makes one"),
            ("teacher", f"{identity.teacher.spec}, weights {identity.teacher.weights[:16]}"),
            ("made by", element("pre", str(made.get("command", "an unknown command")))),
            ("made on", str(made.get("date", "an unknown date"))),
            ("with", ", ".join(f"{name} {made[name]}" for name in ("softcache", "torch", "numpy") if name in made)),
        ]
    return element("div", _facts(facts))


def _facts(facts: list[tuple[str, Child]]) -> Element:
    made = definitions(facts)
    made.set("class", "facts")
    return made


def _kind(kind: str) -> str:
    return {"compare": "comparison"}.get(kind, kind)


def _of_run(student: Student) -> list[tuple[str, Child]]:
    record = student.record
    if record is None:
        return []
    data = record.data or {}
    facts: list[tuple[str, Child]] = []
    if data.get("spec") is not None:
        facts.append(("dataset", f"{data['spec']}/{data.get('split')}, {data.get('rows')} rows"))
    if data.get("fingerprint") is not None:
        facts.append(("its fingerprint", element("code", str(data["fingerprint"]))))
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    return [*facts, ("trained with", versions)]


def _given(student: Student) -> dict[str, Any]:
    """The options that were asked for; of a run that has only recorded ones, those that aren't the defaults."""
    options = dict(student.asked)
    if student.record is None or len(options) < len(student.record.options.to_json()):
        return options
    defaults = type(student.record.options)().to_json()
    return {
        name: value for name, value in options.items() if value != defaults.get(name) and name not in ("out", "resume")
    }
