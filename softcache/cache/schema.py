"""What a cache's manifest says: names, and dataclasses that refuse anything else.

``identity`` is all that the numbers in the shards depend on; its canonical JSON's sha256 is the cache id that
every shard carries. ``state`` may change and has a checksum of its own. docs/format.md is the specification.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from softcache.datasets._labels import label_bytes
from softcache.errors import IntegrityError, UsageError
from softcache.inputs import InputField

FORMAT = "softcache"
VERSION = 2
MANIFEST = "cache.json"
ROWS, SAMPLES, VIRTUAL = "rows.h5", "samples.h5", "cache.h5"
LOGITS = "logits"
KINDS = ("classes", "binary", "values")
KEPT_SAMPLES = 64  # rows whose pixels are kept where nobody asks for more
MAX_SAMPLES_BYTES = 4 * 2**30  # of kept pixels; they are written in pieces and mapped, never held in memory
MAX_VIEWS = 10_000  # numbers from here on are left to views that no cache records
MAX_COLUMNS = 1_000
MAX_CONVERSIONS = 16  # of a column, one after the other
MAX_INPUTS = 64
MAX_SIDE = 2**13  # pixels of a view's side
MAX_SHARD_BYTES = 512 * 2**20
MAX_ROW_BYTES = 256 * 2**20  # of one key in one column
MAX_RAGGED_ROWS = 2**20  # of a shard whose rows have lengths of their own
MAX_MANIFEST_BYTES = 16 * 2**20  # parsed, that is at most some 400 MiB
MAX_SHARDS = 2**20  # of all views and columns
# As its files have it: an output, or a layer's path with what is taken of it, and of which share of the rows.
COLUMN = re.compile(
    r"[A-Za-z_][A-Za-z0-9_]*"
    r"|hint\.[A-Za-z0-9_][A-Za-z0-9_.\-]*(?:@in)?(?:@pool=[1-9]\d{0,3})?(?:@rows=(?:1|0\.\d{0,5}[1-9]))?"
)
_HINT = "hint."
_SHARE = ":rows="
_OF_ROWS = re.compile(r"hint\..*:rows=(1|0\.\d{0,5}[1-9])")
_HEX = re.compile(r"[0-9a-f]{64}")

T = TypeVar("T")


@dataclass(frozen=True)
class Numerics:
    """What the teacher's arithmetic was, as far as it can change the last bits."""

    dtype: str
    amp: str
    tf32: bool
    memory_format: str
    compile: bool
    device: str


@dataclass(frozen=True)
class TeacherIdentity:
    """``weights`` is the sha256 of the parameters and buffers."""

    spec: str
    weights: str
    preprocess: dict[str, Any]
    numerics: Numerics


@dataclass(frozen=True)
class DatasetIdentity:
    """``inputs``: what a view of a row is made of, by name: ``pixels`` (H, W, C), or others. ``fingerprint``: of the
    contents that views are made from, without labels."""

    spec: str
    split: str
    rows: int
    inputs: dict[str, InputField]
    fingerprint: str


@dataclass(frozen=True)
class Grid:
    """Which rows the teacher sees together, on which last bits depend: ``batch`` of them, beginning again at every
    ``block_rows``, which is a power of two. A shard lies within a block. ``bucket``: the input by whose lengths the
    rows of a block are sorted before, so that rows of like length come together; None for the order of rows."""

    block_rows: int
    batch: int
    bucket: str | None = None


@dataclass(frozen=True)
class Identity:
    """All that the numbers depend on, whatever is kept of them."""

    format: int
    teacher: TeacherIdentity
    dataset: DatasetIdentity
    recipe: dict[str, Any]
    grid: Grid

    def cache_id(self) -> str:
        return hashlib.sha256(canonical_json(dataclasses.asdict(self))).hexdigest()


@dataclass(frozen=True)
class Conversion:
    """What a column was before it was converted: its ``codec``, the hash of this codec's ``constants`` if it had any,
    and its ``error`` by then, all as the column's record had them."""

    codec: str
    constants: str | None
    error: dict[str, float]


@dataclass(frozen=True)
class ColumnRecord:
    """What is kept of one signal of the teacher.

    ``kind``: what its last axis is: ``classes`` (logits of a softmax), ``binary`` (logits of a sigmoid each) or
    ``values``. ``shape``: of one key; None for a first axis that each row has a length of its own in. ``codec``: as
    ``recorded_codec`` names it. ``shard_rows``: a power of two. ``lengths``: where the first axis is None, the input
    whose lengths it goes by: a row that is n long there has ceil(n / ``stride``) places here. It is None where the
    column is of a share of the rows, which its name says: these have one place, the others none. ``constants``: the
    hash of those that the codec was fitted to, see ``cache.constants``, on keys of the first ``fitted_views`` views;
    None where it has none. ``compress``: how what the codec keeps is compressed, as ``cache.compression`` records it;
    None where it lies there as it is. ``error``: of the codec on some keys of all rows and views, by name, and how many
    ``keys`` it was measured on; empty before.
    ``converted``: through which other codecs the values went before, the first of which kept what the teacher said;
    ``error`` is then what this codec has lost of what the last of them gave back. Empty where the values are those
    that a dump in this codec keeps.
    """

    kind: str
    shape: list[int | None]
    codec: str
    shard_rows: int
    lengths: str | None = None
    stride: int = 1
    constants: str | None = None
    fitted_views: int | None = None
    compress: str | None = None
    error: dict[str, float] = field(default_factory=dict)
    converted: list[Conversion] = field(default_factory=list)

    @property
    def ragged(self) -> bool:
        """Whether rows have different numbers of places."""
        return self.shape[:1] == [None]

    @property
    def tail(self) -> tuple[int, ...]:
        """The axes whose sizes are the same in all rows."""
        return tuple(size for size in self.shape if size is not None)

    def sha256(self) -> str:
        """Of all that a shard's bytes mean; every shard of the column carries it."""
        meaning = dataclasses.asdict(self)
        del meaning["error"]
        if not self.converted:
            del meaning["converted"]
        for step in meaning.get("converted", ()):
            del step["error"]
        return hashlib.sha256(canonical_json(meaning)).hexdigest()


@dataclass
class State:
    """What may change: how many views and which columns are wanted, what was measured, how it was made.

    ``samples`` is K, of how many rows the inputs are kept, and ``samples_lengths`` how long those rows are together, of
    each input whose rows have lengths of their own. ``name_bytes``: the width of a file's name, 0 without names.
    ``class_names``: of the dataset; ``labels``: the sha256 of the labels in ``rows.h5``.
    """

    views: int
    samples: int
    samples_lengths: dict[str, int]
    class_names: list[str]
    labels: str
    name_bytes: int = 0
    columns: dict[str, ColumnRecord] = field(default_factory=dict)
    teacher_top1: float | None = None
    made: dict[str, Any] = field(default_factory=dict)


def once_per_cache(state: State) -> list[str]:
    """The files that a cache has once, but for manifest and constants: one that keeps no inputs has no
    ``samples.h5``."""
    return [ROWS, *([SAMPLES] if state.samples else [])]


def canonical_json(value: Any) -> bytes:
    """Sorted keys, no spaces, UTF-8: the bytes that fingerprints are taken over."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def from_json(cls: type[T], data: Any, where: str) -> T:
    """A dataclass from parsed JSON; anything missing, added or of another type raises ``IntegrityError``."""
    if not isinstance(data, dict):
        raise IntegrityError(f"{where} is not an object")
    hints = typing.get_type_hints(cls)
    extra, missing = set(data) - set(hints), set(hints) - set(data)
    if extra or missing:
        raise IntegrityError(f"{where} has the wrong fields: {short(sorted(extra | missing))}")
    return cls(**{key: _typed(hints[key], value, f"{where}.{key}") for key, value in data.items()})


def hint_column(layer: str) -> str:
    """The column's name for a layer.

    Errors: ``UsageError`` for a path that could not be a module's, and for no share of the rows.
    """
    name = f"{_HINT}{layer}"
    if "@" not in layer and COLUMN.fullmatch(in_files(name)):
        return name
    path, rows, share = layer.partition(_SHARE)
    if rows and "@" not in path and COLUMN.fullmatch(in_files(f"{_HINT}{path}")):
        raise UsageError(
            f"{layer!r}: {share!r} is no share of the rows: it is above 0 and at most 1, has at most six decimals and "
            "no zero after them, and comes after :in and :pool=, such as layer3:pool=7:rows=0.25"
        )
    raise UsageError(f"{layer!r} is not a module path such as layer3, fc:in, layer3:pool=7 or layer3:rows=0.25")


def is_hint(column: str) -> bool:
    return column.startswith(_HINT)


def layer_of(column: str) -> str:
    """The layer whose activations a hint's column keeps."""
    return column.removeprefix(_HINT)


def share_of(column: str) -> float | None:
    """The share of the rows that a column is kept for, if its name says one.

    >>> share_of("hint.layer3:pool=7:rows=0.25"), share_of("hint.layer3")
    (0.25, None)
    """
    found = _OF_ROWS.fullmatch(column)
    return None if found is None else float(found[1])


def in_files(column: str) -> str:
    """A column's name in those of its files: ``@`` because not every file system takes a colon."""
    return column.replace(":", "@")


def length_array(name: str) -> str:
    """The array of ``rows.h5`` that says how long each row of an input is."""
    return f"length/{name}"


def shard_name(view: int, column: str, number: int) -> str:
    """``view-0003/hint.fc@in-00002.h5``."""
    return f"view-{view:04d}/{in_files(column)}-{number:05d}.h5"


def labels_sha256(labels: np.ndarray) -> str:
    """Of labels of any kind, by their bytes in ``rows.h5``."""
    return hashlib.sha256(label_bytes(labels)).hexdigest()


def sample_arrays(
    inputs: Mapping[str, InputField], count: int, together: Mapping[str, int]
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """What ``samples.h5`` holds of so many rows: name → dtype and shape. ``together``: how long they are together, of
    inputs whose rows have lengths of their own: these lie end to end."""
    return {
        "index": ("<i8", (count,)),
        **{
            name: (np.dtype(field.dtype).str, (together[name] if field.ragged else count, *field.tail))
            for name, field in inputs.items()
        },
    }


def most_samples(rows: int, row_bytes: int) -> int:
    """How many rows of so many may have their inputs kept, of ``row_bytes`` each."""
    return max(1, min(rows, MAX_SAMPLES_BYTES // row_bytes))


def _typed(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint):
        return from_json(typing.cast(type, hint), value, where)
    if origin is types.UnionType:
        inner = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        return None if value is None else _typed(inner[0], value, where)
    if hint is Any:
        return value
    if origin is list and isinstance(value, list):
        return [_typed(typing.get_args(hint)[0], item, where) for item in value]
    if origin is dict and isinstance(value, dict):
        return {key: _typed(typing.get_args(hint)[1], item, where) for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # Python 3.10 takes list[int] for a type, so what has an origin is sorted out first.
    if origin is not None or not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise IntegrityError(f"{where} has the wrong type")
    return value


def short(value: Any) -> str:
    """For an error in one line."""
    text = str(value)
    return text if len(text) <= 120 else f"{text[:119]}…"
