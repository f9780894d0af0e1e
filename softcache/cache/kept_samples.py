"""The inputs of some rows that a cache keeps, ``samples.h5``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

import numpy as np

from softcache.cache.checksum import is_intact
from softcache.cache.mapping import map_shards
from softcache.cache.shard import Opened, read_array
from softcache.errors import IntegrityError
from softcache.inputs import InputField

Samples = tuple[np.ndarray, dict[str, "np.ndarray | list[np.ndarray]"]]


def read_samples(
    file: Opened, inputs: Mapping[str, InputField], rows: int, lengths: Callable[[str], np.ndarray]
) -> Samples:
    """Rows (K,) int64 and their inputs in view 0: name → (K, …), or a list of K arrays where rows have lengths of their
    own. They may be many, so they are mapped, after their checksum was compared.

    ``rows``: how many the cache has; ``lengths``: of the rows of an input. Errors: ``IntegrityError`` naming the file.
    """
    index = read_array(file, "index")
    for name in inputs:
        if not is_intact(file, name):
            raise IntegrityError(f"{file.path} is damaged: its bytes don't match their checksum")
    mapped = map_shards([contextlib.nullcontext(file)], join=False)
    if index.min() < 0 or index.max() >= rows:
        raise IntegrityError(f"{file.path} keeps samples of rows that the cache doesn't have")
    found: dict[str, np.ndarray | list[np.ndarray]] = {}
    for name, given in inputs.items():
        values = mapped[name].parts[0]
        found[name] = values
        if given.ragged:
            ends = np.cumsum(lengths(name)[index])
            if ends[-1] != len(values):
                raise IntegrityError(f"{file.path} has {len(values)} places of {name}, its rows have other lengths")
            found[name] = np.split(values, ends[:-1])
    return index, found


def no_samples(inputs: Mapping[str, InputField]) -> Samples:
    """What a cache has that keeps the inputs of no row."""
    found: dict[str, np.ndarray | list[np.ndarray]] = {
        name: [] if given.ragged else np.empty((0, *given.tail), given.dtype) for name, given in inputs.items()
    }
    return np.empty(0, np.int64), found
