"""What a codec was fitted to, once a cache: ``column-NAME.h5``, with which every shard of the column is decoded.

Its arrays are constants of the codec, such as a scale for each channel. They are fitted before the column's first shard
is written and never again while there is one, and the column's record in the manifest names them by their hash.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from softcache.cache.attributes import constants_attributes
from softcache.cache.column import Column
from softcache.cache.schema import MANIFEST, ColumnRecord, in_files
from softcache.cache.shard import Arrays, Attributes, open_shard, read_array
from softcache.errors import IntegrityError


def constants_name(column: str) -> str:
    """``column-hint.fc@in.h5``."""
    return f"column-{in_files(column)}.h5"


def constants_sha256(arrays: Mapping[str, np.ndarray]) -> str:
    """Of names, dtypes, shapes and bytes, in the order of names."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        digest.update(f"{name}\0{little.dtype.str}\0{','.join(map(str, little.shape))}\0".encode())
        digest.update(little.tobytes())
    return digest.hexdigest()


def read_arrays(path: Path, attributes: Attributes, arrays: Arrays, sha256: str | None) -> dict[str, np.ndarray]:
    """The constants in a file, which are those that a column's record names by their hash, where it names any.

    Errors: ``IntegrityError`` where the file is missing, damaged, or of something else.
    """
    with open_shard(path, attributes, arrays) as file:
        found = {name: read_array(file, name) for name in arrays}
    if sha256 not in (None, constants_sha256(found)):
        raise IntegrityError(f"{path} holds other constants than those that the shards were made with")
    return found


def _read(path: Path, attributes: Attributes, arrays: Arrays, sha256: str) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(array) for name, array in read_arrays(path, attributes, arrays, sha256).items()}


def when_needed(column: Column, record: ColumnRecord, folder: Path, cache_id: str) -> Column:
    """A column of a cache, which reads its codec's constants when they are first needed: others are read without them.

    Errors: ``IntegrityError`` where the record has constants and the codec has none, or the other way round.
    """
    if column.has_constants != (record.constants is not None):
        what = "no constants" if column.has_constants else "constants, of which its codec has none"
        raise IntegrityError(f"{folder / MANIFEST}: the column {column.name!r} has {what}")
    if record.constants is None:
        return column
    path, attributes = constants_of(folder, cache_id, column.name, record)
    read = functools.partial(_read, path, attributes, column.constant_arrays, record.constants)
    return dataclasses.replace(column, constants=read)


def constants_of(folder: Path, cache_id: str, column: str, record: ColumnRecord) -> tuple[Path, Attributes]:
    """The file of a column's constants and its attributes; the record says of how many views keys were drawn."""
    assert record.fitted_views is not None, column
    return folder / constants_name(column), constants_attributes(cache_id, column, record.codec, record.fitted_views)
