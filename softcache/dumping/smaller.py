"""Codecs in which a column takes fewer bytes, for whoever has too many."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from softcache import registry
from softcache.cache.column import Column
from softcache.codecs._open import open_codec, refuse_kind, settled_codec
from softcache.dumping.waiting import Waited
from softcache.errors import SoftcacheError


@dataclass(frozen=True)
class Choice:
    """A column in a codec, and how many bytes of a key that is, digest included."""

    column: str
    codec: str
    key_bytes: int


def key_bytes(column: Column, rows: int, places: int = 0) -> int:
    """What a column keeps of one key, its digest included; of a ragged one the mean of ``rows`` rows that have
    ``places`` places together."""
    return round(column.nbytes(rows, places) / rows)


def smaller_codecs(column: Column, rows: int, places: int = 0) -> list[Choice]:
    """All codecs with their default options in which the column takes fewer bytes, the smallest last."""
    now, found = key_bytes(column, rows, places), []
    for name in registry.names("codecs"):
        try:
            refuse_kind(name, column.kind, column.name)
            codec = open_codec(settled_codec(name, column.kind, column.shape))
            if hasattr(codec, "open_size") and codec.open_size:
                continue  # what the teacher says decides whether it takes less
            other = dataclasses.replace(column, codec=codec, constants=None)
            count = key_bytes(other, rows, places)
        except SoftcacheError:  # it needs options, or is not for such values
            continue
        if count < now:
            found.append(Choice(column.name, name, count))
    return sorted(found, key=lambda choice: -choice.key_bytes)


def cure(columns: Sequence[Column], rows: int, places: Mapping[str, int], wanted: float) -> str:
    """In which codecs these columns take at most ``wanted`` bytes of a key, in words. ``places``: of all rows, by the
    name of a ragged column."""
    held = {column.name: key_bytes(column, rows, places.get(column.name, 0)) for column in columns}
    total = sum(held.values())
    choices = {column.name: smaller_codecs(column, rows, places.get(column.name, 0)) for column in columns}
    enough = [c for some in choices.values() for c in some if total - held[c.column] + c.key_bytes <= wanted]
    if enough:
        return f"enough would be {' or '.join(_told(choice, held) for choice in enough)}"
    last = [some[-1] for some in choices.values() if some]
    if not last:
        return "no codec keeps less: fewer outputs or hints, or a faster disk"
    together = total - sum(held[choice.column] - choice.key_bytes for choice in last)
    told = " and ".join(_told(choice, held) for choice in last)
    if together <= wanted:
        return f"enough would be {told} together"
    return f"{told} would be {together:,}, which is still too much: fewer outputs or hints, or a faster disk"


def advice(waited: Waited, columns: Sequence[Column], rows: int, places: Mapping[str, int]) -> str:
    """What to say at the end of a dump whose teacher waited for the disk. ``columns``: those that were written."""
    total = sum(key_bytes(column, rows, places.get(column.name, 0)) for column in columns)
    wanted = (1 - waited.share) * total  # the teacher's own time is enough to write so much
    speed = waited.written / waited.spent / 1e6
    return (
        f"the teacher waited for the disk {waited.share:.0%} of the time, at {speed:,.1f} MB/s a process: it wouldn't "
        f"with {wanted:,.0f} of the {total:,} bytes a key; "
        f"{cure(columns, rows, places, wanted)} (a cache of another codec needs another --out)"
    )


def _told(choice: Choice, held: Mapping[str, int]) -> str:
    return f"{choice.column} in {choice.codec} ({choice.key_bytes:,} bytes in place of {held[choice.column]:,})"
