"""What a cache's manifest says: names, versions, and dataclasses that refuse anything else.

``identity`` is all that the numbers in the shards depend on; its canonical JSON's sha256 is the cache id that
every shard carries. ``state`` may change and has a checksum of its own. docs/format.md is the specification.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
import stat
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from softcache import strictjson
from softcache.atomic import replace_file
from softcache.errors import CacheError, IntegrityError, UsageError

FORMAT = "softcache"
VERSION = 1
MANIFEST = "cache.json"
ROWS, SAMPLES, VIRTUAL = "rows.h5", "samples.h5", "cache.h5"
LOGITS = "logits"
KEPT_SAMPLES = 64  # rows whose pixels are kept where nobody asks for more
MAX_SAMPLES_BYTES = 4 * 2**30  # of kept pixels; they are written in pieces and mapped, never held in memory
MAX_VIEWS = 10_000  # numbers from here on are left to views that no cache records
MAX_CHANNELS = 4
MAX_SIDE = 2**13  # pixels of a view's side
MAX_SHARD_BYTES = 512 * 2**20
MAX_HINT_BYTES = 256 * 2**20  # one row of a hint
MAX_MANIFEST_BYTES = 16 * 2**20  # parsed, that is at most some 400 MiB
MAX_SHARDS = 2**20  # of all views and columns
_LAYER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*(:in)?")
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
    batch: int


@dataclass(frozen=True)
class TeacherIdentity:
    """``weights`` is the sha256 of the parameters and buffers, ``classifier`` the path of the final layer."""

    spec: str
    weights: str
    preprocess: dict[str, Any]
    classifier: str
    numerics: Numerics


@dataclass(frozen=True)
class DatasetIdentity:
    spec: str
    split: str
    rows: int
    class_names: list[str]
    fingerprint: str


@dataclass(frozen=True)
class Identity:
    """All that the numbers depend on. ``classes`` is the width of the logits, ``shard_rows`` rows a shard of them."""

    format: int
    teacher: TeacherIdentity
    dataset: DatasetIdentity
    recipe: dict[str, Any]
    classes: int
    codec: str
    shard_rows: int

    def cache_id(self) -> str:
        return hashlib.sha256(canonical_json(dataclasses.asdict(self))).hexdigest()


@dataclass(frozen=True)
class HintColumn:
    """A hint's shape of one sample, its dtype on disk, and the rows of one of its shards."""

    shape: list[int]
    dtype: str
    shard_rows: int


@dataclass
class State:
    """What may change: how many views and which hints are wanted, what was measured, how it was made.

    ``samples_shape`` is (K, H, W, C) of the kept pixels, ``name_bytes`` the width of a file's name, 0 without names.
    """

    views: int
    samples_shape: list[int]
    name_bytes: int = 0
    hints: dict[str, HintColumn] = field(default_factory=dict)
    teacher_top1: float | None = None
    codec_error: dict[str, float] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)


@dataclass
class Manifest:
    identity: Identity
    state: State

    @property
    def cache_id(self) -> str:
        return self.identity.cache_id()

    @property
    def columns(self) -> list[str]:
        return [LOGITS, *(hint_column(layer) for layer in self.state.hints)]

    def shard_rows(self, column: str) -> int:
        return self.identity.shard_rows if column == LOGITS else self.hint(column).shard_rows

    def hint(self, column: str) -> HintColumn:
        return self.state.hints[column.removeprefix("hint.")]

    def shards(self, column: str) -> int:
        return -(-self.identity.dataset.rows // self.shard_rows(column))

    def all_shards(self) -> int:
        return self.state.views * sum(map(self.shards, self.columns))

    def save(self, folder: Path) -> None:
        """Replaces ``cache.json`` at once or not at all.

        Errors: ``CacheError`` for what ``load`` would refuse.
        """
        state = dataclasses.asdict(self.state)
        document = {
            "softcache": VERSION,
            "cache_id": self.cache_id,
            "state_sha256": hashlib.sha256(canonical_json(state)).hexdigest(),
            "identity": dataclasses.asdict(self.identity),
            "state": state,
        }
        text = render(document)
        if len(text) > MAX_MANIFEST_BYTES or self.all_shards() > MAX_SHARDS:
            raise CacheError(
                f"{folder}: a cache has at most {MAX_SHARDS:,} shards and {MAX_MANIFEST_BYTES >> 20} MiB of manifest, "
                f"this one would have {self.all_shards():,} and {len(text) >> 20} MiB: raise --shard-rows, or split it"
            )
        _check(self.identity, self.state, folder / MANIFEST)
        replace_file(folder / MANIFEST, text)

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Reads and checks ``cache.json``.

        Errors: ``CacheError`` where there is none or of another version, ``IntegrityError`` where it is damaged.
        """
        path = folder / MANIFEST
        document = parse(read_manifest(folder), path)
        if document["softcache"] != VERSION:
            raise CacheError(
                f"{path} has format {_short(document['softcache'])}, this softcache reads format {VERSION}"
            )
        known = {"softcache", "cache_id", "state_sha256", "identity", "state"}
        if set(document) != known:
            raise IntegrityError(f"{path} has the wrong fields: {_short(sorted(set(document) ^ known))}")
        identity = from_json(Identity, document["identity"], f"{path}: identity")
        state = from_json(State, document["state"], f"{path}: state")
        for part, key in (("identity", "cache_id"), ("state", "state_sha256")):
            if _sha256(document[part], path) != document[key]:
                raise IntegrityError(f"{path}: the {part} doesn't match its {key}: the manifest is damaged or edited")
        _check(identity, state, path)
        return cls(identity, state)


def read_manifest(folder: Path) -> bytes:
    """The bytes of ``cache.json``.

    Errors: ``CacheError`` where there is none, ``IntegrityError`` where it can't be one.
    """
    path = folder / MANIFEST
    try:
        # not blocking, as opening a pipe would wait for its writer
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_MANIFEST_BYTES:
                raise IntegrityError(f"{path} is no file, or too large for a manifest")
            return file.read(MAX_MANIFEST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        raise CacheError(f"{folder} is no cache: it has no {MANIFEST}") from None
    except OSError as error:
        raise IntegrityError(f"{path} can't be read: {error.strerror}") from None


def parse(text: bytes, path: Path) -> dict[str, Any]:
    """A manifest's JSON, without what JSON leaves open: see ``strictjson``."""
    try:
        document = strictjson.loads(text)
    except ValueError as error:
        raise IntegrityError(f"{path} is damaged: {_short(error)}") from None
    if not isinstance(document, dict) or "softcache" not in document:
        raise IntegrityError(f"{path} is not a softcache manifest")
    return document


def render(document: dict[str, Any]) -> bytes:
    """The one way in which a manifest is written."""
    return (json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


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
        raise IntegrityError(f"{where} has the wrong fields: {_short(sorted(extra | missing))}")
    return cls(**{key: _typed(hints[key], value, f"{where}.{key}") for key, value in data.items()})


def hint_column(layer: str) -> str:
    """The column's name for a layer.

    Errors: ``UsageError`` for a path that could not be a module's.
    """
    if not _LAYER.fullmatch(layer):
        raise UsageError(f"{layer!r} is not a module path such as layer3 or fc:in")
    return f"hint.{layer}"


def shard_name(view: int, column: str, number: int) -> str:
    """``view-0003/hint.fc@in-00002.h5``; ``@`` because not every file system takes a colon."""
    return f"view-{view:04d}/{column.replace(':', '@')}-{number:05d}.h5"


def most_samples(rows: int, size: int, channels: int) -> int:
    """How many rows of so many may have their pixels kept, at ``size``² pixels."""
    return max(1, min(rows, MAX_SAMPLES_BYTES // (size * size * channels)))


@dataclass(frozen=True)
class _Recipe:
    """What ``identity.recipe`` must be: how ``views`` makes pixels."""

    spec: str
    revisions: dict[str, int]
    size: int
    resize: int
    seed: int


@dataclass(frozen=True)
class _Preprocess:
    """What ``identity.teacher.preprocess`` must be: how ``models`` makes a network's input."""

    mean: list[float]
    std: list[float]
    size: int | None
    minimum: int
    trained_size: int | None


def _check(identity: Identity, state: State, path: Path) -> None:
    """Bounds every number of a manifest, so that nothing is read, allocated or counted because a file says so.

    Errors: ``IntegrityError`` that names the value.
    """
    recipe = from_json(_Recipe, identity.recipe, f"{path}: identity.recipe")
    from_json(_Preprocess, identity.teacher.preprocess, f"{path}: identity.teacher.preprocess")
    hints = state.hints.values()
    sizes = [identity.shard_rows, *(hint.shard_rows for hint in hints)]
    bounds: dict[str, tuple[object, bool]] = {
        "format": (identity.format, identity.format == VERSION),
        "rows": (identity.dataset.rows, 0 < identity.dataset.rows < 2**40),
        "classes": (identity.classes, 0 < identity.classes < 2**24),
        "shard_rows": (sizes, all(0 < size <= 2**30 and size & (size - 1) == 0 for size in sizes)),
        "views": (state.views, 0 <= state.views < MAX_VIEWS),
        "name_bytes": (state.name_bytes, 0 <= state.name_bytes < 2**16),
        "batch": (identity.teacher.numerics.batch, 0 < identity.teacher.numerics.batch < 2**31),
        "weights": (identity.teacher.weights, bool(_HEX.fullmatch(identity.teacher.weights))),
        "recipe.seed": (recipe.seed, 0 <= recipe.seed < 2**64),
        "recipe.size": (recipe.size, 0 < recipe.size <= MAX_SIDE),
        "recipe.resize": (recipe.resize, 0 < recipe.resize < 2**16),
        "hints": (list(state.hints), all(_LAYER.fullmatch(layer) and len(layer) < 200 for layer in state.hints)),
        "hints.shape": ([hint.shape for hint in hints], all(map(_is_hint_shape, hints))),
        "hints.dtype": ([hint.dtype for hint in hints], all(h.dtype in ("float16", "float32") for h in hints)),
    }
    wrong = [f"{name} {_short(value)}" for name, (value, good) in bounds.items() if not good]
    if not wrong and not _is_samples_shape(state.samples_shape, identity.dataset.rows, recipe.size):
        wrong = [f"samples_shape {_short(state.samples_shape)} for views of {recipe.size} pixels"]
    if not wrong and Manifest(identity, state).all_shards() > MAX_SHARDS:
        wrong = [f"{_short(Manifest(identity, state).all_shards())} shards"]
    if wrong:
        raise IntegrityError(f"{path} has values that no cache can have: {wrong[0]}")


def _is_samples_shape(shape: list[int], rows: int, size: int) -> bool:
    """Whether kept pixels (K, H, W, C) can be those of views of this size: compared before anything is read."""
    if len(shape) != 4 or shape[1:3] != [size, size] or not 0 < shape[3] <= MAX_CHANNELS:
        return False
    return 0 < shape[0] <= most_samples(rows, size, shape[3])


def _is_hint_shape(hint: HintColumn) -> bool:
    return (
        len(hint.shape) <= 8
        and all(0 < n < 2**31 for n in hint.shape)
        and math.prod(hint.shape) * (2 if hint.dtype == "float16" else 4) <= MAX_HINT_BYTES
    )


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


def _sha256(value: Any, path: Path) -> str:
    try:
        return hashlib.sha256(canonical_json(value)).hexdigest()
    except (ValueError, RecursionError) as error:  # a lone surrogate, "\\ud800", is no UTF-8
        raise IntegrityError(f"{path} is damaged: {_one_line(error)}") from None


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 120 else f"{text[:119]}…"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
