"""What a cache's manifest says: names, versions, and dataclasses that refuse anything else.

``identity`` is all that the numbers in the shards depend on; its canonical JSON's sha256 is the cache id that
every shard carries. ``state`` may change and has a checksum of its own. docs/format.md is the specification.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from softcache.cache.atomic import replace_file
from softcache.errors import CacheError, IntegrityError, UsageError

FORMAT = "softcache"
VERSION = 1
MANIFEST = "cache.json"
ROWS, SAMPLES, VIRTUAL = "rows.h5", "samples.h5", "cache.h5"
LOGITS = "logits"
KEPT_SAMPLES = 64
MAX_SHARD_BYTES = 512 * 2**20
MAX_MANIFEST_BYTES = 64 * 2**20
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
class Teacher:
    """``weights`` is the sha256 of the parameters and buffers, ``classifier`` the path of the final layer."""

    spec: str
    weights: str
    preprocess: dict[str, Any]
    classifier: str
    numerics: Numerics


@dataclass(frozen=True)
class Dataset:
    spec: str
    split: str
    rows: int
    class_names: list[str]
    fingerprint: str


@dataclass(frozen=True)
class Identity:
    """All that the numbers depend on. ``classes`` is the width of the logits, ``shard_rows`` rows a shard of them."""

    format: int
    teacher: Teacher
    dataset: Dataset
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

    def save(self, folder: Path) -> None:
        """Replaces ``cache.json`` at once or not at all."""
        state = dataclasses.asdict(self.state)
        document = {
            "softcache": VERSION,
            "cache_id": self.cache_id,
            "state_sha256": hashlib.sha256(canonical_json(state)).hexdigest(),
            "identity": dataclasses.asdict(self.identity),
            "state": state,
        }
        text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        replace_file(folder / MANIFEST, text.encode())

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Reads and checks ``cache.json``.

        Errors: ``CacheError`` where there is none or of another version, ``IntegrityError`` where it is damaged.
        """
        path = folder / MANIFEST
        try:
            if os.path.getsize(path) > MAX_MANIFEST_BYTES:
                raise IntegrityError(f"{path} is too large for a manifest")
            document = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise CacheError(f"{folder} is no cache: it has no {MANIFEST}") from None
        except (OSError, ValueError, RecursionError) as error:
            raise IntegrityError(f"{path} can't be read: {_one_line(error)}") from None
        if not isinstance(document, dict) or "softcache" not in document:
            raise IntegrityError(f"{path} is not a softcache manifest")
        if document["softcache"] != VERSION:
            raise CacheError(f"{path} has format {document['softcache']!r}, this softcache reads format {VERSION}")
        known = {"softcache", "cache_id", "state_sha256", "identity", "state"}
        if set(document) != known:
            raise IntegrityError(f"{path} has the wrong fields: {sorted(set(document) ^ known)}")
        identity = from_json(Identity, document["identity"], f"{path}: identity")
        state = from_json(State, document["state"], f"{path}: state")
        if identity.cache_id() != document["cache_id"]:
            raise IntegrityError(f"{path}: the identity doesn't match its cache id: the manifest is damaged or edited")
        if hashlib.sha256(canonical_json(document["state"])).hexdigest() != document["state_sha256"]:
            raise IntegrityError(f"{path}: the state doesn't match its checksum: the manifest is damaged or edited")
        _check(identity, state, path)
        return cls(identity, state)


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
        raise IntegrityError(f"{where} has the wrong fields: {sorted(extra | missing)}")
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


def _check(identity: Identity, state: State, path: Path) -> None:
    rows, classes = identity.dataset.rows, identity.classes
    sizes = [identity.shard_rows, *(hint.shard_rows for hint in state.hints.values())]
    good = (
        0 < rows < 2**40
        and 0 < classes < 2**24
        and all(0 < size <= 2**30 and size & (size - 1) == 0 for size in sizes)
        and 0 <= state.views < 10_000
        and 0 <= state.name_bytes < 2**16
        and len(state.samples_shape) >= 1
        and all(0 < n < 2**20 for n in state.samples_shape)
        and identity.teacher.numerics.batch > 0
        and _HEX.fullmatch(identity.teacher.weights)
        and all(0 < n < 2**31 for hint in state.hints.values() for n in hint.shape)
        and all(len(hint.shape) <= 8 and hint.dtype in ("float16", "float32") for hint in state.hints.values())
        and all(_LAYER.fullmatch(layer) for layer in state.hints)
    )
    if not good:
        raise IntegrityError(f"{path} has values that no cache can have")


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
    if not isinstance(hint, type) or not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise IntegrityError(f"{where} has the wrong type")
    return value


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
