"""Names and values as trackers take them: flat, and numbers alone for what is drawn."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from softcache.addresses import printable
from softcache.errors import UsageError
from softcache.tracking._tracker import Value

FINAL = "final/"  # begins the names of what a run came to


def scalars(line: Mapping[str, Any], axis: str) -> dict[str, float]:
    """The numbers of a line of ``metrics.jsonl`` or ``steps.jsonl`` by name, without the number of the epoch or step
    and without what is null. Names of objects within are joined by a slash. Of an epoch also ``samples_per_s``.

    >>> scalars({"epoch": 2, "loss": 0.5, "hint_losses": {"at": 0.1}, "samples": 8, "epoch_s": 2.0}, "epoch")
    {'loss': 0.5, 'hint_losses/at': 0.1, 'samples': 8, 'epoch_s': 2.0, 'samples_per_s': 4.0}
    """
    found = {name: value for name, value in _flat(line, "") if name != axis}
    if found.get("samples") and found.get("epoch_s"):
        found["samples_per_s"] = found["samples"] / found["epoch_s"]
    return found


def refuse_comma(path: str, option: str) -> str:
    """``path``. Errors: ``UsageError`` where it can't be an option of a spec, in which commas separate options."""
    if "," in path:
        raise UsageError(f"--log {option}=…: {path} has a comma, which separates options: name a path without one")
    return path


def configuration(values: Mapping[str, Any]) -> dict[str, Value]:
    """Options by name, without those that are None or empty. Lists become text; what is secret in addresses is left
    out."""
    found: dict[str, Value] = {}
    for name, value in values.items():
        if value is None or (isinstance(value, (list, tuple)) and not value):
            continue
        if isinstance(value, (bool, int, float)):
            found[name] = value
        elif isinstance(value, (list, tuple)):
            found[name] = ", ".join(map(printable, value))
        else:
            found[name] = printable(value)
    return found


def summarized(values: Mapping[str, Any]) -> dict[str, Value]:
    """What a run came to, under names that begin with ``final/``."""
    return {FINAL + name: value for name, value in configuration(values).items()}


def numbers(values: Mapping[str, Value]) -> dict[str, float]:
    """Those of the values that can be drawn."""
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }


def _flat(values: Mapping[str, Any], before: str) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield before + name, value
