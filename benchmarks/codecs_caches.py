"""Caches of the same keys that differ in what is kept of their logits, all made from one whose codec is fp32.

A teacher's numbers depend on how they are computed together, so that caches which were dumped one by one could differ
in more than their codec.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from softcache.atomic import commit
from softcache.cache.column import DIGEST, Column
from softcache.cache.constants import constants_of, constants_sha256
from softcache.cache.manifest import Manifest
from softcache.cache.reader import Cache
from softcache.cache.schema import LOGITS, ROWS, SAMPLES
from softcache.cache.shard import ShardWriter, write_temporary
from softcache.codecs._open import open_codec, settled_codec, sized_codec
from softcache.dumping.drawn import drawn_keys

Change = Callable[[torch.Tensor], torch.Tensor]
PIECE = 128  # rows that are encoded together


def recoded(source: Path, out: Path, codec: str, change: Change | None = None) -> None:
    """The cache ``out`` of the logits of the cache ``source``, and of nothing else, in another codec.

    A codec that has constants is fitted on the keys that a dump fits it on. ``change``: of logits (B, C), what is kept
    in their place, such as what comes back from a scheme of others. A folder that has a manifest is complete.
    """
    if (out / "cache.json").exists():
        return
    shutil.rmtree(out, ignore_errors=True)  # of a call that was interrupted
    cache = Cache(source)
    reader, identity = cache.column(LOGITS), cache.manifest.identity
    record = cache.manifest.state.columns[LOGITS]
    named = settled_codec(codec, record.kind, record.tail)
    record = dataclasses.replace(record, codec=named, constants=None, fitted_views=None, error={})
    column = Column.of(LOGITS, record, open_codec(named))
    out.mkdir(parents=True)
    if column.has_constants:
        keys = drawn_keys(cache.manifest.cache_id, cache.rows, cache.views)
        views = [reader.gather(view, keys[keys[:, 0] == view, 1]) for view in range(cache.views)]
        values = torch.cat([reader.decode(arrays) for arrays in views])
        named = sized_codec(named, values)
        column = dataclasses.replace(column, codec=open_codec(named))
        constants = column.fit(values)
        sha256 = constants_sha256(constants)
        record = dataclasses.replace(record, codec=named, fitted_views=cache.views, constants=sha256)
        path, attributes = constants_of(out, cache.manifest.cache_id, LOGITS, record)
        commit(write_temporary(path, attributes, constants), path)
    for name in (ROWS, SAMPLES):
        shutil.copyfile(source / name, out / name)
    state = dataclasses.replace(cache.manifest.state, columns={LOGITS: record})
    Manifest(identity, state).save(out)
    try:
        _write_shards(cache, Cache(out), change)
    except BaseException:
        (out / "cache.json").unlink()
        raise


def _write_shards(source: Cache, out: Cache, change: Change | None) -> None:
    reader, column = source.column(LOGITS), out.layout(LOGITS)
    for view in range(source.views):
        out.shard_path(view, LOGITS, 0).parent.mkdir()
        for number in range(out.manifest.shards(LOGITS)):
            first, rows = out.shard_range(LOGITS, number)
            writer = ShardWriter(
                out.shard_path(view, LOGITS, number),
                out.shard_attributes(view, LOGITS, number),
                out.shard_arrays(LOGITS, number),
            )
            try:
                for at in range(0, rows, PIECE):
                    arrays = reader.gather(view, np.arange(first + at, first + min(at + PIECE, rows)))
                    logits = reader.decode(arrays)
                    coded = column.encode(logits if change is None else change(logits))
                    held = {name: array.numpy() for name, array in coded.items()}
                    writer.write(at, {DIGEST: arrays[DIGEST], **held})
            except BaseException:
                writer.abort()
                raise
            writer.commit()
