"""Whether a folder's cache is the one that is asked for, field by field."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from softcache.cache.schema import Identity
from softcache.errors import CacheError

_OPTIONS = {
    "teacher.weights": "the same weights",
    "teacher.preprocess": "--normalize",
    "teacher.numerics.dtype": "--dtype",
    "teacher.numerics.amp": "--amp",
    "teacher.numerics.tf32": "--tf32",
    "teacher.numerics.memory_format": "--channels-last",
    "teacher.numerics.compile": "--compile",
    "teacher.numerics.device": "--device",
    "dataset.spec": "--dataset",
    "dataset.split": "--split",
    "dataset.fingerprint": "the same data, with the same --fingerprint",
    "recipe.spec": "--augment",
    "recipe.seed": "--view-seed",
    "recipe.size": "--size",
    "grid.block_rows": "--shard-rows",
    "grid.batch": "--batch-size",
    "grid.bucket": "--bucket",
}
_ONE_LINE = 2  # differing fields that are still readable in one line


def refuse_other(found: Identity, wanted: Identity, where: str) -> None:
    """Nothing where both are the same. ``where``: how messages call the cache.

    Errors: ``CacheError`` with every differing field, what the folder has beside what was asked for, and the options
    that decide them.
    """
    fields = differing(found, wanted)
    if not fields:
        return
    options = dict.fromkeys(option for key in fields for start, option in _OPTIONS.items() if key.startswith(start))
    advice = f"match {', '.join(options)} or use another --out" if options else "use another --out"
    if len(fields) <= _ONE_LINE:
        shown = "; ".join(f"{key}: {there} there, {now} now" for key, (there, now) in fields.items())
        raise CacheError(f"{where} is a cache of something else ({shown}): {advice}")
    lines = [("field", "there", "now"), *((key, there, now) for key, (there, now) in fields.items())]
    widths = [max(len(line[k]) for line in lines) for k in range(2)]
    table = "\n".join(f"  {key.ljust(widths[0])}  {there.ljust(widths[1])}  {now}" for key, there, now in lines)
    raise CacheError(f"{where} is a cache of something else:\n{table}\n{advice}")


def differing(found: Identity, wanted: Identity) -> dict[str, tuple[str, str]]:
    """Field → what the folder has and what was asked for, as short texts that differ."""
    theirs, ours = _flat(dataclasses.asdict(found)), _flat(dataclasses.asdict(wanted))
    return {
        key: _beside(theirs.get(key), ours.get(key))
        for key in dict.fromkeys([*theirs, *ours])
        if not _equal(theirs.get(key), ours.get(key))
    }


def _equal(a: Any, b: Any) -> bool:
    both_nan = isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b)
    return both_nan or (type(a) is type(b) and a == b)


def _beside(there: Any, now: Any) -> tuple[str, str]:
    if isinstance(there, list) and isinstance(now, list):
        if len(there) != len(now):
            return f"{len(there)} of them", f"{len(now)} of them"
        at = next(k for k in range(len(there)) if there[k] != now[k])
        return f"[{at}] {there[at]}", f"[{at}] {now[at]}"
    a, b = str(there), str(now)
    if max(len(a), len(b)) <= 40:
        return a, b
    at = next((k for k in range(min(len(a), len(b))) if a[k] != b[k]), min(len(a), len(b)))
    start = max(0, at - 8)
    return _cut(a, start), _cut(b, start)


def _cut(text: str, start: int) -> str:
    return ("…" if start else "") + text[start : start + 16] + ("…" if len(text) > start + 16 else "")


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for key, item in value.items() for k, v in _flat(item, f"{prefix}.{key}" if prefix else key).items()}
