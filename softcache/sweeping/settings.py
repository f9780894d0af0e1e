"""Runs by their settings: which differ in the seed alone, and what tells the others apart. ``eval`` and ``report`` put
runs together, and call them, by what is here."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, TypeVar

from softcache import registry
from softcache.config.record import Record
from softcache.config.resume import MOVABLE
from softcache.config.several import GRID
from softcache.errors import SoftcacheError
from softcache.losses._terms import parse_term
from softcache.remembered import is_plain, portable
from softcache.sweeping.grid import shown

# Options that say where and how a student is trained, and nothing of what it learns.
_INDIFFERENT = frozenset({
    *MOVABLE, "seed", "out", "resume", "test", "log_every", "verify_reads", "at_once", "expect", "local_cache",
    "local_size",
})  # fmt: skip
# Options of which a record says what they came to.
_SETTLED = ("loss", "T", "hint", "cache", "hint_cache", "strong_cache")
# What a setting and labels alone must have in common for a gain to be the teacher's.
COMMON = ("student", "label_fraction", "val_fraction", "order_seed")
# Options whose values may be paths, of which the end is said.
_PLACES = ("student", "teacher", "dataset", "cache", "hint_cache", "strong_cache", "weights", "teacher_weights")
_OTHER_OUTPUT = re.compile(r"[:,]of=(?!logits\b)")
Item = TypeVar("Item")


def setting_of(options: Mapping[str, Any], record: Record[Any] | None = None) -> dict[str, Any]:
    """All that a run is but for its seed, by name. Two runs of equal settings differ in the seed alone.

    ``options``: of the run, as they were asked for or settled. ``record``: of a run that has one, by which losses,
    hint losses and temperatures are those that it was trained with, ``None`` of a run on labels alone, and ``cache`` is
    the names of its caches, ``caches`` their ids."""
    found = {name: value for name, value in options.items() if name not in _INDIFFERENT}
    if record is None:
        return found
    settled = {
        "loss": [entry["loss"] for entry in record.losses],
        "T": list(dict.fromkeys(entry["T"] for entry in record.losses)),
        "hint": [entry["hint"] for entry in record.hints],
        "cache": [PurePath(entry["path"]).name or entry["path"] for entry in record.caches],
        "caches": [entry["cache_id"] for entry in record.caches],
    }
    others = {name: value for name, value in found.items() if name not in _SETTLED}
    return {**others, **{name: value or None for name, value in settled.items()}}


def temperature(record: Record[Any]) -> str | None:
    """The temperature of the first loss on logits, as a number or a schedule; None of a run without one."""
    on_logits = [entry for entry in record.losses if not _OTHER_OUTPUT.search(entry["loss"])]
    return on_logits[0]["T"] if on_logits else None


def grouped(items: Sequence[Item], settings: Sequence[Hashable | dict[str, Any]]) -> list[list[Item]]:
    """Items of equal settings together, in the order in which they come."""
    found: dict[str, list[Item]] = {}
    for item, setting in zip(items, settings, strict=True):
        found.setdefault(_exactly(setting), []).append(item)
    return list(found.values())


def varied(settings: Sequence[Mapping[str, Any]], kinds: Sequence[Hashable] | None = None) -> list[dict[str, str]]:
    """What tells settings apart, as a table has it: of each setting the same names, in the order of a sweep's columns
    and then of their names, without ``beta`` where it is 1 - ``alpha`` throughout.

    ``kinds``: of each setting, where only what differs within a kind is of interest, and what must be common to all of
    them: students on labels alone have no loss, no T and a rate of their own.
    """
    names = [*GRID, *sorted({name for one in settings for name in one} - {*GRID, "caches"})]
    columns: dict[str, list[str]] = {}
    for name in names:
        texts = _texts(name, settings)
        within: dict[Hashable, set[str]] = {}
        for kind, text in zip(kinds or [None] * len(texts), texts, strict=True):
            within.setdefault(None if name in COMMON else kind, set()).add(text)
        if any(len(found) > 1 for found in within.values()) and not (name == "beta" and all(map(_follows, settings))):
            columns[name] = texts
    return [{name: texts[k] for name, texts in columns.items()} for k in range(len(settings))]


def told_value(name: str, value: Any) -> str:
    """A value of an option as a table has it; a dash for none."""
    if value is None or value in ([], (), ""):
        return "–"
    if isinstance(value, (list, tuple)):
        return "+".join(told_value(name, one) for one in value)
    if name == "loss":
        return _spelled(str(value))
    if name in _PLACES:
        text = portable(str(value))
        return text if is_plain(name, text) or ":" in text else PurePath(text).name or text
    try:
        return f"{float(value):g}" if isinstance(value, str) else shown(value)
    except ValueError:
        return str(value)


def _texts(name: str, settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The values of an option: short, and longer where settings of different values would look alike."""
    values = [setting.get(name) for setting in settings]
    told = [told_value(name, value) for value in values]
    # Of a cache the id says which one it is, and two may have the same name.
    ids = [setting.get("caches") if name == "cache" else None for setting in settings]
    exact = [_exactly(own or value) for own, value in zip(ids, values, strict=True)]
    if _pattern(told) == _pattern([text if text == "–" else one for text, one in zip(told, exact, strict=True)]):
        return told
    return [
        text if text == "–" else shown(value) if own is None else f"{text} {'+'.join(f'{one[:8]}…' for one in own)}"
        for text, value, own in zip(told, values, ids, strict=True)
    ]


def _exactly(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _pattern(values: Sequence[str]) -> list[int]:
    return [values.index(value) for value in values]


def _follows(setting: Mapping[str, Any]) -> bool:
    """Whether ``beta`` is 1 - ``alpha``, which it is where nobody gave it."""
    alpha, beta = setting.get("alpha"), setting.get("beta")
    if beta is None:
        return True
    try:
        return abs(1 - float(str(alpha)) - float(str(beta))) < 1e-9
    except ValueError:
        return False


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
