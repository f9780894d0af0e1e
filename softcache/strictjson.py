"""JSON from files that may come from anyone: everything that can be wrong with it is a ``ValueError`` of one line."""

from __future__ import annotations

import json
from typing import Any

MAX_DIGITS = 40  # early Pythons take minutes to parse a million


def loads(text: bytes | str) -> Any:
    """Parsed JSON, without what JSON leaves open: no NaN, no infinity, no name twice in an object, no number of more
    than 40 digits, no nesting deeper than Python can follow.

    Errors: ``ValueError``.
    """
    try:
        return json.loads(
            text.decode("utf-8") if isinstance(text, bytes) else text,
            parse_int=_integer,
            parse_constant=_refuse_constant,
            object_pairs_hook=_distinct,
        )
    except (ValueError, RecursionError, MemoryError) as error:
        raise ValueError(" ".join(str(error).split())[:200] or type(error).__name__) from None


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
