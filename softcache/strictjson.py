"""JSON as softcache writes it, and from files that may come from anyone: everything that can be wrong with these is a
``ValueError`` of one line."""

from __future__ import annotations

import json
import math
from typing import Any

MAX_DEPTH = 100
MAX_DIGITS = 40  # early Pythons take minutes to parse a million


def loads(text: bytes | str) -> Any:
    """Parsed JSON, without what JSON leaves open: no NaN, no infinity, no name twice in an object, no number of more
    than 40 digits, and at most 100 objects or lists within one another.

    Errors: ``ValueError``.
    """
    try:
        value = json.loads(
            text.decode("utf-8") if isinstance(text, bytes) else text,
            parse_int=_integer,
            parse_constant=_refuse_constant,
            object_pairs_hook=_distinct,
        )
        _refuse_depth(value)
        return value
    except (ValueError, RecursionError, MemoryError) as error:
        raise ValueError(" ".join(str(error).split())[:200] or type(error).__name__) from None


def dumps(value: Any, *, indent: int | None = None) -> str:
    """What ``loads`` takes: a number that JSON doesn't have, such as the NaN of a training that went wrong, is null."""
    try:
        return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _refuse_depth(value: Any) -> None:
    """What is written or compared later recurses, from a stack that may be deeper than this one."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in an object")
    return found
