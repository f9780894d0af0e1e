"""Runs by their settings: which differ in the seed alone, and what tells the others apart."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Sequence
from pathlib import PurePath
from typing import Any, TypeVar

from softcache.config.record import Record
from softcache.config.resume import MOVABLE
from softcache.config.several import GRID
from softcache.config.train import TrainConfig
from softcache.remembered import portable
from softcache.sweeping.grid import shown

# Options that are no part of what is trained, or are said elsewhere in the record.
_UNSEEN = frozenset({
    *MOVABLE, "seed", "out", "resume", "test", "log_every", "verify_reads", "expect", "local_cache", "local_size",
    "loss", "T", "hint", "cache", "hint_cache", "strong_cache",
})  # fmt: skip
_OTHER_OUTPUT = re.compile(r"[:,]of=(?!logits\b)")
Item = TypeVar("Item")


def setting_of(record: Record[TrainConfig]) -> dict[str, Any]:
    """All that a run is but for its seed, by name: its options as they were settled, the losses that it was trained
    with and their temperature, ``None`` of a run on labels alone, and the ids of its caches. Two runs of equal
    settings differ in the seed alone."""
    options = record.options.to_json()
    found = {name: options[name] for name in ("student",)}
    found["loss"] = "+".join(entry["loss"] for entry in record.losses) or None
    found["T"] = "+".join(dict.fromkeys(entry["T"] for entry in record.losses)) or None
    if any(entry["weight"] != record.losses[0]["weight"] for entry in record.losses):
        found["weights"] = "+".join(entry["weight"] for entry in record.losses)
    found["hint"] = "+".join(entry["hint"] for entry in record.hints) or None
    found["cache"] = "+".join(_last(entry["path"]) for entry in record.caches) or None
    found["caches"] = [entry["cache_id"] for entry in record.caches]
    return found | {name: value for name, value in options.items() if name not in _UNSEEN}


def temperature(record: Record[TrainConfig]) -> str | None:
    """The temperature of the first loss on logits, as a number or a schedule; None of a run without one."""
    on_logits = [entry for entry in record.losses if not _OTHER_OUTPUT.search(entry["loss"])]
    return on_logits[0]["T"] if on_logits else None


def grouped(items: Sequence[Item], settings: Sequence[Hashable | dict[str, Any]]) -> list[list[Item]]:
    """Items of equal settings together, in the order in which they come."""
    found: dict[str, list[Item]] = {}
    for item, setting in zip(items, settings, strict=True):
        found.setdefault(json.dumps(setting, sort_keys=True, default=str), []).append(item)
    return list(found.values())


def varied(settings: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """What tells settings apart, as a table has it: of each setting the same names, in the order of a sweep's columns,
    without ``beta`` where it is 1 - ``alpha`` throughout."""
    names = [*GRID, "weights", "hint", "cache"]
    names += sorted({name for one in settings for name in one} - {*names, "caches"})
    columns: dict[str, list[str]] = {}
    for name in names:
        values = [_told(name, one.get(name)) for one in settings]
        if len(set(values)) > 1 and not (name == "beta" and all(map(_follows, settings))):
            columns[name] = _shortened(values)
    return [{name: values[k] for name, values in columns.items()} for k in range(len(settings))]


def _pattern(values: Sequence[str]) -> list[int]:
    return [values.index(value) for value in values]


def _follows(setting: dict[str, Any]) -> bool:
    """Whether ``beta`` is 1 - ``alpha``."""
    try:
        return abs(1 - float(setting.get("alpha", "")) - float(setting.get("beta", ""))) < 1e-9
    except (TypeError, ValueError):
        return False


def _told(name: str, value: Any) -> str:
    if value is None or value in ([], ()):
        return "–"
    if name in ("student", "teacher", "dataset", "weights", "data_dir") and isinstance(value, str):
        return _last(portable(value)) if value.startswith("/") else portable(value)
    try:
        return f"{float(value):g}" if isinstance(value, str) else shown(value)
    except ValueError:
        return shown(value)


def _last(path: str) -> str:
    return PurePath(path).name or path


def _shortened(values: Sequence[str]) -> list[str]:
    """Specs without their options where the names alone tell them apart."""
    bare = [re.sub(r":[^+]*", "", value) for value in values]
    alike = _pattern(bare) == _pattern(list(values)) and not any(".py" in value for value in values)
    return bare if alike else list(values)
