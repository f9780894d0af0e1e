"""How large the files of a cache are before any of them is there: to the byte, or of compressed shards at most.

All of it comes from what writes them: the arrays of a column, and HDF5's description of a file, which is made in
memory. A file's size depends on the names, dtypes and shapes in it, and on no value, unless it is compressed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence

import numpy as np

from softcache.cache.attributes import constants_attributes, file_attributes, rows_attributes, shard_attributes
from softcache.cache.chunk_frames import most_stored
from softcache.cache.column import Column
from softcache.cache.extents import Arrays
from softcache.cache.schema import length_array, sample_arrays
from softcache.cache.shard import file_bytes
from softcache.cache.writer import KeptSamples
from softcache.datasets._labels import Labels
from softcache.ragged import Int64

INDEX_BYTES = 32  # that a chunk takes at most in its index, with the part of a page that is its own
FILTERS_BYTES = 4096  # of a compressed array's description beside those of one that isn't
_HASH = "0" * 64  # stands for any sha256


def shards_bytes(column: Column, rows: int, lengths: Mapping[str, Int64]) -> list[int]:
    """Of each shard of a column in one view; of a compressed one at most, as its numbers decide how many they are.
    ``lengths``: (N,) of each input whose rows have lengths of their own."""
    firsts = np.arange(0, rows, column.shard_rows)
    counts, places = np.diff(np.append(firsts, rows)), np.zeros_like(firsts)
    if column.ragged:
        places = np.add.reduceat(column.places(rows, lengths), firsts)
    attributes = shard_attributes(_HASH, column.name, _HASH, view=0, first_row=0, rows=0)
    kinds = list(zip(counts.tolist(), places.tolist(), strict=True))
    found = {kind: file_bytes(attributes, column.arrays(*kind)) + _beside_numbers(column, *kind) for kind in set(kinds)}
    return [found[kind] for kind in kinds]


def _beside_numbers(column: Column, rows: int, places: int) -> int:
    """Bytes that compressing adds to a shard where nothing in it gets smaller."""
    found = 0
    for name, how in column.chunking.items():
        dtype, shape = column.arrays(rows, places)[name]
        count = -(-shape[0] // how.rows)
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        found += count * (most_stored(0) + INDEX_BYTES) + most_stored(nbytes) - nbytes + FILTERS_BYTES
    return found


def constants_bytes(column: Column, recorded: str, views: int) -> int:
    """Of the file of what its codec is fitted to; 0 where it has none. ``recorded``: the codec in the manifest."""
    if not column.has_constants:
        return 0
    return file_bytes(constants_attributes(_HASH, column.name, recorded, views), column.constant_arrays)


def rows_bytes(labels: Labels, names: Sequence[str] | None, lengths: Mapping[str, Int64]) -> int:
    """Of ``rows.h5``. ``names``: the files of rows, if they come from files."""
    held: Arrays = {"label": (labels.dtype.str, labels.shape)}
    if names is not None:
        width = max(len(os.fsencode(name)) for name in names)
        held["name"] = (f"S{width}", (len(names),))
    held |= {length_array(name): ("<i8", own.shape) for name, own in lengths.items()}
    return file_bytes(rows_attributes(_HASH, _HASH), held)


def samples_bytes(samples: KeptSamples) -> int:
    """Of ``samples.h5``."""
    arrays = sample_arrays(samples.inputs, len(samples.rows), samples.together)
    return file_bytes(file_attributes(_HASH, "samples"), arrays)
