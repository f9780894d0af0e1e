"""Caches that are written directly, without a teacher: random logits, and the digests of real views."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from softcache import registry
from softcache.atomic import commit
from softcache.cache.chunk_frames import Chunking
from softcache.cache.column import Column
from softcache.cache.compression import settled_compression
from softcache.cache.constants import constants_of, constants_sha256
from softcache.cache.reader import Cache
from softcache.cache.schema import (
    LOGITS,
    VERSION,
    ColumnRecord,
    DatasetIdentity,
    Grid,
    Identity,
    Numerics,
    TeacherIdentity,
    hint_column,
)
from softcache.cache.shard import Attributes, write_temporary
from softcache.cache.writer import KeptSamples, create_or_extend
from softcache.inputs import InputField
from softcache.models._preprocess import Preprocess
from softcache.views._digest import digest
from softcache.views._viewed import ViewedDataset

RECIPE: dict[str, object] = {"spec": "none", "revisions": {"none": 1}, "size": 8, "resize": 8, "seed": 0}


def identity(rows: int, block_rows: int, recipe: dict[str, object], channels: int = 1) -> Identity:
    numerics = Numerics("float32", "off", False, "contiguous", False, "cpu")
    teacher = TeacherIdentity("made", "0" * 64, Preprocess((0.0,), (1.0,)).to_dict(), numerics)
    size = int(str(recipe["size"]))
    inputs = {"pixels": InputField("uint8", [size, size, channels])}
    dataset = DatasetIdentity("made", "train", rows, inputs, "0" * 64)
    return Identity(VERSION, teacher, dataset, recipe, Grid(block_rows, 64))


def kept_nothing(size: int, channels: int = 1) -> KeptSamples:
    """Black pixels of the first row."""
    fields = {"pixels": InputField("uint8", [size, size, channels])}
    return KeptSamples(
        np.zeros(1, np.int64), fields, lambda rows: {"pixels": np.zeros((len(rows), size, size, channels), np.uint8)}
    )


def write_shard(
    path: Path,
    attributes: Attributes,
    arrays: dict[str, np.ndarray],
    chunking: Mapping[str, Chunking] | None = None,
) -> None:
    """A whole file at once."""
    commit(write_temporary(path, attributes, arrays, chunking), path)


def compressed(name: str, record: ColumnRecord, compress: str | None) -> ColumnRecord:
    """The record of a column that is compressed as itself says, else so."""
    row = Column.of(name, record, registry.create("codecs", record.codec)).row
    return dataclasses.replace(record, compress=settled_compression(record.compress or compress, row))


def kept_arrays(column: Column, coded: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """With the dtypes that they have in files: torch has no unsigned ones of two bytes."""
    return {name: array.numpy().view(column.row[name][0]) for name, array in coded.items()}


def make_cache(
    folder: Path,
    *,
    rows: int,
    classes: int = 10,
    shard_rows: int = 256,
    views: int = 2,
    codec: str = "fp16",
    hints: dict[str, ColumnRecord] | None = None,
    viewed: ViewedDataset | None = None,
    written: bool = True,
    logits: np.ndarray | None = None,
    compress: str | None = None,
) -> tuple[Cache, list[np.ndarray]]:
    """The cache, and each view's logits (N, C) float32 as the codec gives them back.

    ``logits`` are those of every view, by default random ones; ``compress`` is of all columns. Without ``viewed``
    digests are 0. Without ``written`` there is no shard.
    """
    hints = hints or {}
    labels = viewed.samples.labels if viewed is not None else np.zeros(rows, np.int32)
    recipe = viewed.identity() if viewed is not None else RECIPE
    size = int(str(recipe["size"]))
    columns = {LOGITS: ColumnRecord("classes", [classes], codec, shard_rows)}
    folder.mkdir(parents=True, exist_ok=True)
    whole = identity(rows, max([shard_rows, *(hint.shard_rows for hint in hints.values())]), recipe)
    columns |= {hint_column(layer): fitted(folder, whole, layer, record) for layer, record in hints.items()}
    columns = {name: compressed(name, record, compress) for name, record in columns.items()}
    made = create_or_extend(
        folder,
        whole,
        views=views,
        columns=columns,
        made={},
        class_names=[str(k) for k in range(classes)],
        labels=labels,
        names=None,
        samples=kept_nothing(size),
    )
    cache = made if isinstance(made, Cache) else Cache(folder)
    coder, rng, expected = cache.layout(LOGITS).coder, np.random.default_rng(3), []
    for view in range(views if written else 0):
        given = rng.standard_normal((rows, classes)) if logits is None else logits
        coded = coder.encode(torch.from_numpy(given.astype(np.float32)))
        expected.append(coder.decode(coded).numpy())
        digests = np.zeros(rows, np.uint32)
        if viewed is not None:
            digests = digest(viewed.batch(np.arange(rows), view).numpy())
        held = {LOGITS: kept_arrays(cache.layout(LOGITS), coded)}
        for layer, hint in hints.items():
            values = torch.from_numpy(rng.standard_normal((rows, *hint.shape)))
            made_hint = cache.layout(hint_column(layer)).encode(values)
            held[hint_column(layer)] = kept_arrays(cache.layout(hint_column(layer)), made_hint)
        for column, arrays in held.items():
            for number in range(cache.manifest.shards(column)):
                path = cache.shard_path(view, column, number)
                path.parent.mkdir(exist_ok=True)
                first, count = cache.shard_range(column, number)
                part = {name: array[first : first + count] for name, array in {"digest": digests, **arrays}.items()}
                write_shard(path, cache.shard_attributes(view, column, number), part, cache.layout(column).chunking)
    return cache, expected


def fitted(folder: Path, whole: Identity, layer: str, record: ColumnRecord) -> ColumnRecord:
    """The record of a hint, with constants fitted to random numbers where its codec has any; they lie in the folder."""
    column = Column.of(hint_column(layer), record, registry.create("codecs", record.codec))
    if not column.has_constants:
        return record
    record = dataclasses.replace(record, fitted_views=1)
    arrays = column.fit(torch.from_numpy(np.random.default_rng(4).standard_normal((100, *column.shape))))
    write_shard(*constants_of(folder, whole.cache_id(), column.name, record), arrays)
    return dataclasses.replace(record, constants=constants_sha256(arrays))


def make_ragged(
    folder: Path, lengths: list[int], *, shard_rows: int, views: int = 2, compress: str | None = None
) -> Cache:
    """Rows of ``ids`` of these lengths; logits, ``states`` (L, 3) in fp16 and ``pairs`` (⌈L/2⌉) in fp32, at random.
    The inputs of all rows are kept, and digests are 0."""
    inputs, rows = {"ids": InputField("int16", [None])}, np.arange(len(lengths))
    plain = identity(len(lengths), shard_rows, RECIPE)
    columns = {
        LOGITS: ColumnRecord("classes", [5], "fp16", shard_rows),
        "pairs": ColumnRecord("values", [None], "fp32", shard_rows, "ids", 2),
        "states": ColumnRecord("values", [None, 3], "fp16", shard_rows, "ids"),
    }
    columns = {name: compressed(name, record, compress) for name, record in columns.items()}
    cache = create_or_extend(
        folder,
        dataclasses.replace(
            plain,
            dataset=dataclasses.replace(plain.dataset, inputs=inputs),
            recipe={"spec": "none", "revisions": {"none": 1}, "seed": 0},
        ),
        views=views,
        columns=columns,
        made={},
        class_names=[str(k) for k in range(5)],
        labels=np.zeros(len(lengths), np.int32),
        names=None,
        samples=KeptSamples(
            rows,
            inputs,
            lambda some: {"ids": [np.arange(lengths[row], dtype=np.int16) for row in some]},
            {"ids": np.array(lengths, np.int64)},
        ),
    )
    rng = np.random.default_rng(3)
    for view in range(views):
        for column in columns:
            for number in range(cache.manifest.shards(column)):
                path = cache.shard_path(view, column, number)
                path.parent.mkdir(exist_ok=True)
                first, count = cache.shard_range(column, number)
                held = cache.shard_arrays(column, number)
                arrays = {name: np.zeros(shape, dtype) for name, (dtype, shape) in held.items()}
                arrays["values"][:] = rng.standard_normal(arrays["values"].shape)
                if "offset" in arrays:
                    stride = columns[column].stride
                    arrays["offset"][1:] = np.cumsum([-(-n // stride) for n in lengths[first : first + count]])
                write_shard(path, cache.shard_attributes(view, column, number), arrays, cache.layout(column).chunking)
    return cache
