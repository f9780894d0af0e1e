"""The attributes of a cache's files, by which each file says to which cache and to which part of it it belongs."""

from __future__ import annotations

from softcache.cache.schema import FORMAT, ROWS, VERSION
from softcache.cache.shard import Attributes


def file_attributes(cache_id: str, name: str) -> Attributes:
    """Those that every file has. ``name``: the column, or ``rows`` and ``samples``."""
    return {"format": FORMAT, "version": VERSION, "cache_id": cache_id, "column": name}


def rows_attributes(cache_id: str, labels_sha256: str) -> Attributes:
    """Those of ``rows.h5``."""
    return {**file_attributes(cache_id, ROWS.removesuffix(".h5")), "labels_sha256": labels_sha256}


def shard_attributes(
    cache_id: str, column: str, column_sha256: str, *, view: int, first_row: int, rows: int
) -> Attributes:
    """Those of a shard. ``column_sha256``: of the column's record."""
    place: Attributes = {"view": view, "first_row": first_row, "rows": rows}
    return {**file_attributes(cache_id, column), **place, "column_sha256": column_sha256}


def constants_attributes(cache_id: str, column: str, codec: str, fitted_views: int) -> Attributes:
    """Those of the file of a codec's constants. ``codec``: as the record names it; ``fitted_views``: of how many views
    the keys were drawn that it was fitted on."""
    return {**file_attributes(cache_id, column), "codec": codec, "views": fitted_views}
