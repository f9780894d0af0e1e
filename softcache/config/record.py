"""What the folder of a run or of a teacher says of itself: ``config.json``, as a typed, versioned record."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

import softcache
from softcache import strictjson
from softcache.atomic import replace_file
from softcache.config.given import FOLLOWED
from softcache.config.options import Options, refuse_unknown
from softcache.config.teach import TeachConfig
from softcache.config.train import TrainConfig
from softcache.errors import SoftcacheError, UsageError
from softcache.losses._schedule import Schedule
from softcache.remembered import absolute

CONFIG = "config.json"
TEACHER_FILE, STUDENT_FILE = "teacher.safetensors", "student.safetensors"
VERSION = 1
KINDS: dict[str, type[Options]] = {"teach": TeachConfig, "train": TrainConfig}
# Where a folder lies and that it is gone on with are no part of what it is.
_UNRECORDED = ("out", "resume")
# Lists of objects → the texts that each entry has.
_ENTRIES = {
    "losses": ("loss", "weight", "T"),
    "hints": ("hint", "weight"),
    "caches": ("path", "cache_id"),
    "teachers": ("teacher", "weights"),
}
Config = TypeVar("Config", bound=Options)


@dataclass(frozen=True)
class Record(Generic[Config]):
    """``command``: ``teach`` or ``train``. ``options``: those of the command, with absolute paths. ``model``: what is
    needed to build the network again. ``data``: what it was trained on, as ``describe_data`` says it. ``start``: where
    its first parameters came from. ``losses``, ``hints``: terms of the loss with their weights and temperatures,
    spelled out. ``caches``: path and cache id of each. ``teachers``: those that it learns from, live or by their
    caches, each with its ``teacher``, a spec, and ``weights``, the fingerprint of its parameters; none of a run on
    labels alone. ``view_numbers``: the recorded views that it is trained on.
    ``live``: precision and memory format of a live teacher.
    ``result``: what it came to, once it is finished."""

    command: str
    options: Config
    model: dict[str, Any]
    data: dict[str, Any] | None = None
    start: dict[str, Any] = field(default_factory=dict)
    losses: list[dict[str, Any]] = field(default_factory=list)
    hints: list[dict[str, Any]] = field(default_factory=list)
    caches: list[dict[str, str]] = field(default_factory=list)
    teachers: list[dict[str, str]] = field(default_factory=list)
    view_numbers: list[int] | None = None
    held_out_rows: int = 0
    live: dict[str, Any] | None = None
    versions: dict[str, str] = field(
        default_factory=lambda: {"softcache": softcache.__version__, "torch": str(torch.__version__)}
    )
    result: dict[str, Any] | None = None

    def save(self, folder: Path) -> None:
        """Writes ``config.json`` at once or not at all."""
        values = {own.name: getattr(self, own.name) for own in dataclasses.fields(self)}
        options = {name: value for name, value in self.options.to_json().items() if name not in _UNRECORDED}
        document = {"version": VERSION, **values, "options": options}
        replace_file(folder / CONFIG, (strictjson.dumps(document, indent=1) + "\n").encode())


def read_record(folder: Path) -> Record[Any]:
    """Errors: ``SoftcacheError`` where there is none, for one of another version, and for anything in it that isn't
    known."""
    path = folder / CONFIG
    document = _read_json(path, f"{folder} has no {CONFIG}: it is neither a run nor a teacher")
    if not isinstance(document, dict) or "version" not in document:
        raise SoftcacheError(f"{path} is not the record of a run or a teacher")
    if document["version"] != VERSION:
        raise SoftcacheError(
            f"{path} is a record of version {str(document['version'])[:40]}, this softcache knows {VERSION}"
        )
    known = {own.name: own for own in dataclasses.fields(Record)}
    values = {name: value for name, value in document.items() if name != "version"}
    for name in values:
        if name not in known:
            raise SoftcacheError(
                f"{path} has {name[:40]!r}, which this softcache doesn't know: it was made by another one"
            )
    if values.get("command") not in list(KINDS) or not all(
        isinstance(values.get(n), dict) for n in ("options", "model")
    ):
        raise SoftcacheError(f"{path} is not the record of a run or a teacher")
    for name, texts in _ENTRIES.items():
        _refuse_entries(f"{path}: {name}", values.get(name, []), texts)
    for name, (is_one, what) in _VALUES.items():
        if name in values and not is_one(values[name]):
            raise SoftcacheError(f"{path}: {name} is not {what}, but {_brief(values[name])}")
    if values["command"] == "train" and not _is_result(values.get("result")):
        raise SoftcacheError(f"{path}: result is not what a run came to: numbers, and one on held-out rows among them")
    return Record(**{**values, "options": options_from(values["options"], values["command"], path)})


def _refuse_entries(where: str, entries: Any, texts: Sequence[str]) -> None:
    """Errors: ``SoftcacheError`` for what is no list of objects that have these ``texts``, where weights and
    temperatures are schedules."""
    if not isinstance(entries, list):
        raise SoftcacheError(f"{where} is not a list, but {_brief(entries)}")
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict):
            raise SoftcacheError(f"{where}: entry {number} is not an object, but {_brief(entry)}")
        for name in texts:
            if name not in entry:
                raise SoftcacheError(f"{where}: entry {number} has no {name!r}")
            if not isinstance(entry[name], str):
                raise SoftcacheError(f"{where}: {name!r} of entry {number} is not a text, but {_brief(entry[name])}")
        for name in {"weight", "T"} & set(texts):
            try:
                Schedule.parse(entry[name])
            except UsageError as error:
                raise SoftcacheError(f"{where}: {name!r} of entry {number}: {error}") from None


def _brief(value: Any) -> str:
    """A value of a file as JSON has it, cut where it is long.

    >>> _brief(None), _brief([1.5, "a"])
    ('null', '[1.5, "a"]')
    """
    text = strictjson.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def _is_live(value: Any) -> bool:
    return value is None or (
        isinstance(value, dict)
        and value.keys() == {"amp", "channels_last"}
        and isinstance(value["amp"], str)
        and isinstance(value["channels_last"], bool)
    )


def _are_views(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(type(own) is int and own >= 0 for own in value))


def _is_result(result: Any) -> bool:
    """Whether it is that of a run, or none yet: its scores are numbers or null, that on held-out rows among them."""
    if result is None:
        return True
    if not isinstance(result, dict) or not any(name.startswith("val_") for name in result):
        return False
    scores = [value for name, value in result.items() if name.startswith(("val_", "test_"))]
    return all(value is None or is_number(value) for value in scores)


def is_number(value: Any) -> bool:
    """Whether a value of a file is a finite number, and no ``true`` or ``false``.

    >>> is_number(0.5), is_number(True), is_number(1e999)
    (True, False, False)
    """
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


# What else a record has → whether a value is one, and what it has to be.
_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "data": (lambda value: value is None or isinstance(value, dict), "an object"),
    "start": (lambda value: isinstance(value, dict), "an object"),
    "versions": (lambda value: isinstance(value, dict), "an object"),
    "live": (_is_live, "precision and memory format of a live teacher"),
    "view_numbers": (_are_views, "a list of numbers of views"),
    "held_out_rows": (lambda value: type(value) is int and value >= 0, "a number of rows"),
}


def options_from(options: dict[str, Any], command: str, path: Path) -> Any:
    """Options of a command as JSON has them. Errors: ``SoftcacheError`` that names the file."""
    cls = KINDS[command]
    try:
        refuse_unknown(cls, options)
        return cls.of(**{name: tuple(v) if isinstance(v, list) else v for name, v in options.items()})
    except UsageError as error:
        raise SoftcacheError(f"{path}: {error}") from None


def absolute_paths(options: Config) -> Config:
    """Options whose paths are absolute, so that they can be followed from anywhere."""
    values = {own.name: getattr(options, own.name) for own in dataclasses.fields(options)}
    named = [name for name in FOLLOWED if name in values]
    for name in named:
        value = values[name]
        whole = tuple(absolute(one, name) for one in value) if isinstance(value, tuple) else None
        values[name] = (value and absolute(value, name)) if whole is None else whole
    return dataclasses.replace(options, **{name: values[name] for name in named})


def recorded_options(folder: Path) -> Any:
    """The options that the run or teacher in ``folder`` was trained with, its dataset and size among them; None where
    it has no record."""
    return read_record(folder).options if (folder / CONFIG).exists() else None


def _read_json(path: Path, absent: str) -> Any:
    try:
        return strictjson.loads(path.read_bytes())
    except FileNotFoundError:
        raise SoftcacheError(absent) from None
    except (OSError, ValueError) as error:
        raise SoftcacheError(f"{path} can't be read: {error}") from None
