"""A cache's manifest, ``cache.json``: read, checked, written."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
import shlex
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softcache import strictjson
from softcache.addresses import adding_to
from softcache.atomic import replace_file
from softcache.cache.schema import (
    COLUMN,
    KINDS,
    MANIFEST,
    MAX_COLUMNS,
    MAX_CONVERSIONS,
    MAX_INPUTS,
    MAX_MANIFEST_BYTES,
    MAX_RAGGED_ROWS,
    MAX_ROW_BYTES,
    MAX_SAMPLES_BYTES,
    MAX_SHARDS,
    MAX_SIDE,
    MAX_VIEWS,
    VERSION,
    ColumnRecord,
    Identity,
    State,
    canonical_json,
    from_json,
    in_files,
    is_hint,
    layer_of,
    share_of,
    short,
)
from softcache.errors import CacheError, IntegrityError
from softcache.inputs import (
    DTYPES,
    MAX_CHANNELS,
    MAX_LENGTH,
    PIXELS,
    WHITE,
    InputField,
    is_input_name,
    number_bytes,
)

_HEX = re.compile(r"[0-9a-f]{64}")
_TAKEN = {"rows", "samples", "cache"}  # names of other files


@dataclass
class Manifest:
    identity: Identity
    state: State

    @property
    def cache_id(self) -> str:
        return self.identity.cache_id()

    @property
    def columns(self) -> list[str]:
        """Outputs, then hints."""
        return sorted(self.state.columns, key=lambda name: (is_hint(name), name))

    @property
    def hints(self) -> list[str]:
        """The layers whose activations are kept."""
        return [layer_of(name) for name in self.columns if is_hint(name)]

    def shard_rows(self, column: str) -> int:
        return self.state.columns[column].shard_rows

    def shards(self, column: str) -> int:
        return -(-self.identity.dataset.rows // self.shard_rows(column))

    def all_shards(self) -> int:
        return self.state.views * sum(map(self.shards, self.columns))

    def lacking(self, where: str, column: str) -> str:
        """That the cache has no such column, and how to add it."""
        hints, outputs = self.hints, [name for name in self.columns if not is_hint(name)]
        if is_hint(column):
            what, known, option = f"hint {layer_of(column)!r}", hints, f"--hint {shlex.quote(layer_of(column))}"
        else:
            what, known, option = (
                f"output {column!r}",
                outputs,
                f"--output {shlex.quote(column)}",
            )
        first, place = adding_to(where)
        return (
            f"{where} has no {what} (it has {', '.join(known) or 'none'}): "
            f"add it with: {first}softcache dump … --out {place} {option}"
        )

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
        self.check(folder / MANIFEST)
        replace_file(folder / MANIFEST, text)

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Reads and checks ``cache.json``.

        Errors: ``CacheError`` where there is none or of another version, ``IntegrityError`` where it is damaged.
        """
        return cls.of(read_manifest(folder), folder / MANIFEST)

    @classmethod
    def of(cls, content: bytes, path: Path | str) -> Manifest:
        """That of the bytes of a ``cache.json``, which messages call ``path``. Errors: as ``load``."""
        document = parse(content, path)
        if document["softcache"] != VERSION:
            raise CacheError(f"{path} has format {short(document['softcache'])}, this softcache reads format {VERSION}")
        known = {"softcache", "cache_id", "state_sha256", "identity", "state"}
        if set(document) != known:
            raise IntegrityError(f"{path} has the wrong fields: {short(sorted(set(document) ^ known))}")
        identity = from_json(Identity, document["identity"], f"{path}: identity")
        state = from_json(State, document["state"], f"{path}: state")
        for part, key in (("identity", "cache_id"), ("state", "state_sha256")):
            if _sha256(document[part], path) != document[key]:
                raise IntegrityError(f"{path}: the {part} doesn't match its {key}: the manifest is damaged or edited")
        manifest = cls(identity, state)
        manifest.check(path)
        return manifest

    def check(self, path: Path | str) -> None:
        """Bounds every number, so that nothing is read, allocated or counted because a file says so.

        Errors: ``IntegrityError`` that names the value.
        """
        kind = _OfPixels if PIXELS in self.identity.dataset.inputs else _Recipe
        recipe = from_json(kind, self.identity.recipe, f"{path}: identity.recipe")
        preprocess = from_json(_Preprocess, self.identity.teacher.preprocess, f"{path}: identity.teacher.preprocess")
        if not 0 < (preprocess.size or 1) <= MAX_SIDE:
            raise IntegrityError(f"{path} has values that no cache can have: preprocess.size {short(preprocess.size)}")
        wrong = _of_identity(self.identity, recipe) or _of_state(self)
        if wrong:
            raise IntegrityError(f"{path} has values that no cache can have: {wrong}")


def find_caches(root: str | Path = "caches") -> list[Path]:
    """Folders below ``root`` that have a manifest."""
    return sorted(path.parent for path in Path(root).glob("*/cache.json"))


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


def parse(text: bytes, path: Path | str) -> dict[str, Any]:
    """A manifest's JSON, without what JSON leaves open: see ``strictjson``."""
    try:
        document = strictjson.loads(text)
    except ValueError as error:
        raise IntegrityError(f"{path} is damaged: {short(error)}") from None
    if not isinstance(document, dict) or "softcache" not in document:
        raise IntegrityError(f"{path} is not a softcache manifest")
    return document


def render(document: dict[str, Any]) -> bytes:
    """The one way in which a manifest is written."""
    return (json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


@dataclass(frozen=True)
class _Recipe:
    """What ``identity.recipe`` must be: how ``views`` makes inputs."""

    spec: str
    revisions: dict[str, int]
    seed: int


@dataclass(frozen=True)
class _OfPixels(_Recipe):
    """The same of pictures."""

    size: int
    resize: int


@dataclass(frozen=True)
class _Preprocess:
    """What ``identity.teacher.preprocess`` must be: how ``models`` makes a network's input."""

    mean: list[float]
    std: list[float]
    size: int | None
    minimum: int
    trained_size: int | None


def _of_identity(identity: Identity, recipe: _Recipe) -> str:
    """What no cache can have; empty where there is nothing."""
    grid, inputs = identity.grid, identity.dataset.inputs
    sized = all(map(_is_sized, inputs.values()))
    row_bytes = [math.prod(given.tail) * number_bytes(given.dtype) if sized else 0 for given in inputs.values()]
    pictures: dict[str, tuple[object, bool]] = {}
    if isinstance(recipe, _OfPixels):
        sides, given = [recipe.size, recipe.size], inputs[PIXELS]
        channels = [size for size in given.shape[2:] if size is not None]
        pictures = {
            "recipe.size": (recipe.size, 0 < recipe.size <= MAX_SIDE),
            "recipe.resize": (recipe.resize, 0 < recipe.resize < 2**16),
            "inputs.pixels": (
                given,
                len(inputs) == 1
                and given.dtype in WHITE
                and given.pad == 0
                and given.shape[:2] == sides
                and len(channels) == 1
                and 0 < channels[0] <= MAX_CHANNELS,
            ),
        }
    return _first_wrong(
        pictures
        | {
            "format": (identity.format, identity.format == VERSION),
            "rows": (identity.dataset.rows, 0 < identity.dataset.rows < 2**40),
            "grid.block_rows": (grid.block_rows, _is_power_of_two(grid.block_rows)),
            "grid.batch": (grid.batch, 0 < grid.batch < 2**31),
            "grid.bucket": (grid.bucket, grid.bucket is None or (grid.bucket in inputs and inputs[grid.bucket].ragged)),
            "weights": (identity.teacher.weights, bool(_HEX.fullmatch(identity.teacher.weights))),
            "recipe.seed": (recipe.seed, 0 <= recipe.seed < 2**64),
            "inputs": (list(inputs), 0 < len(inputs) <= MAX_INPUTS and all(map(is_input_name, inputs))),
            "inputs.shape": (list(inputs.values()), sized),
            "inputs.dtype": (
                list(inputs.values()),
                all(0 < n <= MAX_ROW_BYTES for n in row_bytes)
                and (bool(pictures) or all(given.dtype in DTYPES for given in inputs.values())),
            ),
        }
    )


def _of_state(manifest: Manifest) -> str:
    """As ``_of_identity``, which found nothing."""
    identity, state = manifest.identity, manifest.state
    columns = state.columns
    wrong = _first_wrong(
        {
            "views": (state.views, 0 <= state.views < MAX_VIEWS),
            "labels": (state.labels, bool(_HEX.fullmatch(state.labels))),
            "name_bytes": (state.name_bytes, 0 <= state.name_bytes < 2**16),
            "columns": (list(columns), 0 < len(columns) <= MAX_COLUMNS and all(map(is_column, columns))),
            "columns.constants": (
                [c.constants for c in columns.values()],
                all(c.constants is None or _HEX.fullmatch(c.constants) for c in columns.values()),
            ),
            "columns.fitted_views": (
                [c.fitted_views for c in columns.values()],
                all(
                    c.fitted_views is None if c.constants is None else 0 < (c.fitted_views or 0) < MAX_VIEWS
                    for c in columns.values()
                ),
            ),
            "columns.converted": (
                [c.converted for c in columns.values()],
                all(
                    len(c.converted) <= MAX_CONVERSIONS
                    and all(step.constants is None or _HEX.fullmatch(step.constants) for step in c.converted)
                    for c in columns.values()
                ),
            ),
            "columns.kind": ([c.kind for c in columns.values()], all(c.kind in KINDS for c in columns.values())),
            "columns.shape": ([c.shape for c in columns.values()], all(map(_is_shape, columns.values()))),
            "columns.shard_rows": (
                [c.shard_rows for c in columns.values()],
                all(_is_power_of_two(c.shard_rows) and c.shard_rows <= identity.grid.block_rows
                    for c in columns.values()),
            ),
            "columns.lengths": (
                [(c.shape, c.lengths, c.stride, c.shard_rows) for c in columns.values()],
                all(_goes_by(name, c, identity.dataset.inputs) for name, c in columns.items()),
            ),
        }
    )  # fmt: skip
    inputs, together = identity.dataset.inputs, state.samples_lengths
    if not wrong and set(together) != {name for name, given in inputs.items() if given.ragged}:
        return f"samples_lengths {short(together)} for inputs {short(list(inputs))}"
    if not wrong and not all(0 <= n < 2**62 for n in together.values()):
        return f"samples_lengths {short(together)}"
    if not wrong:
        places = {name: together[name] if given.ragged else state.samples for name, given in inputs.items()}
        size = sum(places[name] * math.prod(given.tail) * number_bytes(given.dtype) for name, given in inputs.items())
        if not 0 <= state.samples <= identity.dataset.rows or (state.samples > 1 and size > MAX_SAMPLES_BYTES):
            return f"samples {short(state.samples)} of {short(size)} bytes"
    if not wrong and manifest.all_shards() > MAX_SHARDS:
        return f"{short(manifest.all_shards())} shards"
    return wrong


def is_column(name: str) -> bool:
    """Whether a column may have this name."""
    return len(name) < 200 and "@" not in name and bool(COLUMN.fullmatch(in_files(name))) and name not in _TAKEN


def _first_wrong(bounds: dict[str, tuple[object, bool]]) -> str:
    return next((f"{name} {short(value)}" for name, (value, good) in bounds.items() if not good), "")


def _is_power_of_two(value: int) -> bool:
    return 0 < value <= 2**30 and value & (value - 1) == 0


def _is_sized(given: InputField) -> bool:
    """Whether an input may have this shape: only its first axis may be of any length."""
    return (
        0 < len(given.shape) <= 8
        and len(given.tail) == len(given.shape) - given.ragged
        and all(0 < n < 2**31 for n in given.tail)
        and -(2**31) <= given.pad < 2**31
    )


def _is_shape(column: ColumnRecord) -> bool:
    """Bytes a row are those of float32 at most: a codec that needs more is refused when it is opened."""
    return (
        len(column.shape) <= 8
        and (bool(column.tail) or column.kind == "values")
        and len(column.tail) == len(column.shape) - column.ragged
        and all(0 < n < 2**31 for n in column.tail)
        and math.prod(column.tail) * 4 <= MAX_ROW_BYTES
    )


def _goes_by(name: str, column: ColumnRecord, inputs: dict[str, InputField]) -> bool:
    """Whether a column names lengths or a share of the rows where its shape needs one of them, and only there."""
    if share_of(name) is not None:
        return column.ragged and column.lengths is None and column.stride == 1 and column.shard_rows <= MAX_RAGGED_ROWS
    if column.lengths is None:
        return not column.ragged and column.stride == 1
    given = inputs.get(column.lengths)
    return (
        column.ragged
        and given is not None
        and given.ragged
        and 0 < column.stride <= MAX_LENGTH
        and column.shard_rows <= MAX_RAGGED_ROWS
    )


def _sha256(value: Any, path: Path | str) -> str:
    try:
        return hashlib.sha256(canonical_json(value)).hexdigest()
    except (ValueError, RecursionError) as error:  # a lone surrogate, "\\ud800", is no UTF-8
        raise IntegrityError(f"{path} is damaged: {_one_line(error)}") from None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
