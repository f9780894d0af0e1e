"""What caches have to hold that a training reads: the same outputs, enough views, the hints."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from softcache.addresses import adding_to
from softcache.cache.reader import Cache
from softcache.cache.schema import hint_column
from softcache.errors import CacheError, UsageError

log = logging.getLogger(__name__)


def complete_views(
    columns: Sequence[tuple[Cache, str]], count: int | None, numbers: Sequence[int] | None = None
) -> tuple[int, ...]:
    """The views of which every one of these columns is there: those with these ``numbers``, else the first ``count``
    of them, else all.

    Errors: ``CacheError`` where there are fewer.
    """
    complete = sorted(set.intersection(*(set(cache.complete_views(column)) for cache, column in columns)))
    folders = ", ".join(dict.fromkeys(cache.where for cache, _ in columns))
    if numbers is not None:
        absent = sorted(set(numbers) - set(complete))
        if absent:
            raise CacheError(f"{folders} has no complete view {absent[0]} any more, which the run began with")
        return tuple(numbers)
    if len(complete) < (count or 1):
        together = " that all have" if len({cache.folder for cache, _ in columns}) > 1 else ""
        raise CacheError(
            f"{folders} has {len(complete)} complete views{together}, {count or 1} are asked for: "
            f"run the same softcache dump again with --views {count or 1}"
        )
    wanted = max(cache.views for cache, _ in columns)
    if count is None and len(complete) < wanted:
        log.warning(
            f"{folders} is not complete: this training uses {len(complete)} of {wanted} views; run the same softcache "
            "dump again to complete it"
        )
    return tuple(complete[:count])


def check_outputs(outputs: Mapping[str, Sequence[Cache]]) -> None:
    """Errors: ``CacheError`` for a cache without an output that is asked for, and where caches have it in different
    shapes or of different kinds, so that it can't be averaged."""
    for name, caches in outputs.items():
        first = caches[0].layout(name)
        for cache in caches:
            found = cache.layout(name)
            if (found.kind, found.shape) != (first.kind, first.shape):
                raise CacheError(
                    f"{caches[0].where} has {name} of kind {first.kind} and shape {first.shape}, {cache.where} of "
                    f"kind {found.kind} and shape {found.shape}: they can't be combined"
                )
            if (found.lengths, found.stride) != (first.lengths, first.stride):
                raise CacheError(
                    f"{caches[0].where} and {cache.where} have other places of {name} in a row: they can't be combined"
                )


def refuse_twice(caches: Sequence[Cache]) -> None:
    seen: dict[str, Path] = {}
    for cache in caches:
        other = seen.setdefault(cache.manifest.cache_id, cache.folder)
        if len(seen) < len(caches) and other is not cache.folder:
            raise UsageError(f"--cache {other} and --cache {cache.where} are one cache: leave one out")


def find_hints(layers: Sequence[str], caches: Sequence[Cache]) -> dict[str, Cache]:
    """The first cache that has each of the teacher's layers."""
    found: dict[str, Cache] = {}
    for layer in layers:
        having = [cache for cache in caches if hint_column(layer) in cache.manifest.columns]
        if not having:
            raise CacheError(_lacking(layer, caches))
        found[layer] = having[0]
    return found


def _lacking(layer: str, caches: Sequence[Cache]) -> str:
    held = "; ".join(f"{c.where} has {', '.join(c.manifest.hints) or 'none'}" for c in caches)
    cache = caches[0]
    first, place = adding_to(cache.where)
    made, dataset = cache.manifest.state.made, cache.manifest.identity.dataset
    command = [
        "softcache", "dump", "--teacher", made.get("teacher", cache.manifest.identity.teacher.spec),
        "--dataset", made.get("dataset", dataset.spec), "--split", dataset.split,
        "--hint", layer, "--out", place,
    ]  # fmt: skip
    return f"no cache has the hint {layer!r} ({held}): add it with `{first}{shlex.join(map(str, command))}`"
