"""Paths and code that a folder names, and that this user gave for it.

A cache, a run or a teacher may come from anyone. The text of its files says what it was made from, and never makes
this process open a path or import code. What the user names is followed, and remembered for the folder: one JSON for
each folder and role in the user's state folder (``localfiles.state_folder() / "given"``). From then on that remembered
value is followed when the folder names something, as long as the code that it names is the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shlex
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from softcache import strictjson
from softcache.addresses import is_address, without_secret
from softcache.atomic import replace_file
from softcache.errors import NotNamedError
from softcache.hub import change_places, split_options, trusts_code
from softcache.localfiles import state_folder

log = logging.getLogger(__name__)

_DATASET = re.compile(r"(torchvision:)?[A-Za-z0-9_][A-Za-z0-9_.\-]*")
_NETWORK = re.compile(r"((cifar|timm|torchvision):)?[A-Za-z0-9_][A-Za-z0-9_.\-]*")
_PUBLISHED = re.compile(r"[A-Za-z0-9_]+")  # without a dot, so that no file of weights is among them
_CODE = re.compile(r"(?:^|[+=,])\s*python:|\.py:")
# Where a tracker keeps runs of its own account; another option may be a place that somebody else chose.
_TRACKER = re.compile(r"[A-Za-z0-9_]+(:(project|experiment|mode)=[^,=]*(,(project|experiment|mode)=[^,=]*)*)?")
_FILES = ("folder", "csv", "parquet", "arrays")
_NETWORKS = ("model", "student", "teacher")
_PATHS = ("data_dir", "cache", "hint_cache", "strong_cache", "weights", "teacher_weights")
_process: dict[str, Any] = {"writes": True, "allowed": (), "given": ()}


@dataclass(frozen=True)
class Recalled:
    """What the user gave, and the first of the files of code that has changed since."""

    specs: tuple[str, ...]
    changed: str | None = None


def set_process(*, writes: bool = True, allowed: Iterable[str] = (), given: Iterable[Mapping[str, Any]] = ()) -> None:
    """For this process: whether anything is remembered, specs that may be followed wherever a folder names them, and
    what was given elsewhere, as ``everything_given`` has it there.

    The command line calls this, for ``--no-remember`` and ``--allow``.
    """
    _process["writes"] = writes
    _process["allowed"] = tuple(map(absolute, allowed))
    _process["given"] = tuple(given)


def everything_given() -> dict[str, Any]:
    """All that the user gave, in this command and before, for another process of theirs that has other folders:
    ``set_process`` takes it there."""
    folder = state_folder() / "given"
    records = [_read(file) for file in sorted(folder.glob("*.json"))] if _private(folder) else []
    return {"allowed": list(_process["allowed"]), "given": [record for record in records if record is not None]}


@contextlib.contextmanager
def allowing_too(specs: Iterable[str]) -> Iterator[None]:
    """Within it these may be followed wherever a folder names them, too: for what the user gave in this command and is
    read again from folders that it makes."""
    before = _process["allowed"]
    _process["allowed"] = (*before, *map(absolute, specs))
    try:
        yield
    finally:
        _process["allowed"] = before


def process_settings() -> dict[str, Any]:
    """``writes`` and ``allowed`` as ``set_process`` takes them, for a process that this one starts."""
    return {"writes": _process["writes"], "allowed": list(_process["allowed"])}


def is_plain(role: str, spec: str) -> bool:
    """Whether a spec is a name that means the same everywhere: no path, no code."""
    if role == "dataset":
        return _DATASET.fullmatch(spec) is not None
    if role in _NETWORKS:
        return _NETWORK.fullmatch(spec) is not None
    if role in ("weights", "teacher_weights"):
        return _PUBLISHED.fullmatch(spec) is not None
    if role in ("augment", "codec", "loss", "hint"):
        return not _CODE.search(spec)
    if role == "log":
        return _TRACKER.fullmatch(spec) is not None
    return False


def follow(folder: Path, role: str, text: str, identity: str, *, made: str, option: str | None = None) -> str:
    """The spec to act on where a file of ``folder`` names ``text``: a plain name, else what the user gave.

    ``identity``: the cache's id or ``folder_identity``. ``made``: how the message begins, "a was made from b".
    ``option``: how the user can name it in this command.

    Errors: ``NotNamedError`` where it is a path or code that the user never gave for this folder, or where the code
    has changed since.
    """
    return follow_all(folder, role, [text], identity, made=made, option=option)[0]


def follow_all(
    folder: Path, role: str, texts: Sequence[str], identity: str, *, made: str, option: str | None = None
) -> tuple[str, ...]:
    """As ``follow``, for a role that may have several values."""
    chosen = [text if is_plain(role, text) else _allowed(role, text) for text in texts]
    found = tuple(one for one in chosen if one is not None)
    if len(found) == len(texts):
        remember(folder, role, found, identity)
        return found
    known = recall(folder, role, identity)
    if known is not None and known.changed is None and len(known.specs) == len(texts):
        return known.specs
    named = texts if known is None or len(known.specs) != len(texts) else known.specs
    asked = [one for one in named if not is_plain(role, one)]
    how = f"pass {option} {shlex.quote(asked[0])}" if option else f"begin the command with `{allowing(asked)}`"
    if known is not None and known.changed is not None:
        raise NotNamedError(f"{made}, and {known.changed} has changed since you gave it: to run it as it is now, {how}")
    kind = "cache" if (folder / "cache.json").exists() else "folder"
    raise NotNamedError(
        f"{made}. For safety, softcache does not open a path or run code that is named only in a {kind}: {how}"
    )


def allowing(specs: Sequence[str]) -> str:
    """The beginning of a command that may follow these."""
    return "softcache " + " ".join(f"--allow {shlex.quote(spec)}" for spec in specs)


def remember(folder: Path, role: str, spec: str | Sequence[str], identity: str) -> None:
    """Keeps what the user gave for a folder. Plain names need no memory; a state folder that can't be written to is
    passed over.

    ``spec``: one, or several where the role is an option that may be given several times.
    """
    specs = tuple(absolute(one, role) for one in ([spec] if isinstance(spec, str) else spec))
    if not _process["writes"] or all(is_plain(role, one) for one in specs):
        return
    record = {
        "folder": os.path.realpath(folder),
        "role": role,
        "identity": identity,
        "specs": list(specs),
        "code": {path: _sha256(path) for one in specs for path in code_files(one)},
    }
    file = _file(folder, role)
    try:
        if _private(file.parent) and _read(file) == record:
            return
        file.parent.parent.mkdir(parents=True, exist_ok=True)
        file.parent.mkdir(mode=0o700, exist_ok=True)
        replace_file(file, (json.dumps(record, indent=1) + "\n").encode())
    except OSError as error:  # the user then names it again
        log.debug(f"{role} of {folder} is not remembered: {error}")


def recall(folder: Path, role: str, identity: str) -> Recalled | None:
    """What the user gave for a folder of this identity; None where nothing is remembered."""
    key = os.path.realpath(folder), role
    record = next((own for own in _process["given"] if (own.get("folder"), own.get("role")) == key), None)
    if record is None:
        file = _file(folder, role)
        record = _read(file) if _private(file.parent) else None
    if record is None or (record.get("folder"), record.get("role")) != key:
        return None
    specs, code = record.get("specs"), record.get("code")
    if record.get("identity") != identity or not isinstance(specs, list) or not isinstance(code, dict):
        return None
    # The files that the specs name today, so that a module of the same name elsewhere counts as a change.
    now = {path: _sha256(path) for one in specs for path in code_files(str(one))}
    changed = [path for path in {**code, **now} if code.get(path) != now.get(path) or now[path] is None]
    return Recalled(tuple(map(str, specs)), changed[0] if changed else None)


def given_before(folder: Path, role: str, identity: str) -> str | None:
    """The one spec that the user gave for a folder before, where the code that it names is still the same."""
    known = recall(folder, role, identity)
    return known.specs[0] if known is not None and known.changed is None and len(known.specs) == 1 else None


def folder_identity(folder: Path) -> str:
    """The hash of what the ``config.json`` of a run or a teacher says from the beginning of its training to the end,
    so without its result."""
    try:
        document = strictjson.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):  # whoever reads what it says tells the user
        return ""
    lasting = {key: value for key, value in document.items() if key != "result"} if isinstance(document, dict) else {}
    return hashlib.sha256(json.dumps(lasting, sort_keys=True).encode()).hexdigest()


def absolute(spec: str, role: str = "") -> str:
    """A spec whose paths are absolute, so that it means the same in another working folder: ``folder:pets``,
    ``net.py:make``, ``teachers/mine``. Names stay as they are.

    ``role``: that of a path, which needs no separator then, or of a network, which may be a folder here.
    """
    if is_address(spec):
        return without_secret(spec)
    if role in _PATHS and not is_plain(role, spec):
        return _absolute_path(spec)
    if role in _NETWORKS and os.path.isdir(os.path.expanduser(spec)):
        return _absolute_path(spec)
    if len(parts := _parts(spec)) > 1:
        return "+".join(map(absolute, parts))
    file = re.fullmatch(r"(python:)?(.*?\.py):(.*)", spec)
    if file:
        return f"{file[1] or ''}{_absolute_path(file[2])}:{file[3]}"
    source, colon, rest = spec.partition(":")
    if colon and source in _FILES:
        return f"{source}:{_absolute_path(rest)}"
    if colon and source == "hf":
        return change_places(spec, lambda name: _absolute_path(name) if _is_folder(name) else name)
    return _absolute_path(spec) if os.sep in spec and ":" not in spec else spec


def portable(spec: str) -> str:
    """A spec without where things lie on this machine: a cache may be copied to another."""
    file = re.fullmatch(r"(?:python:)?(.*\.py:.*)", spec)
    if file:
        return Path(file[1]).name
    source, colon, rest = spec.partition(":")
    if source in _FILES and colon:
        return f"{source}:{Path(rest).name}"
    if source == "hf" and colon:
        return change_places(spec, lambda name: Path(name).name if os.path.isabs(name) or _is_folder(name) else name)
    return spec


def portable_recipe(spec: str) -> str:
    """A recipe without where its code lies: ``crop+python:/home/me/mine.py:make`` → ``crop+python:mine.py:make``."""
    parts = [part.strip() for part in spec.split("+")]
    return "+".join(f"python:{portable(part)}" if ".py:" in part else part for part in parts)


def code_files(spec: str) -> list[str]:
    """The files of code that a spec names: a ``.py`` file's own, that of a module, found without importing it, and
    those beside a model on disk whose code is trusted. (On the hub such code is named by its commit.)"""
    found = []
    if spec.startswith("hf:") and trusts_code(spec) and _is_folder(name := split_options(spec)[0]):
        found += [str(path) for path in sorted(Path(_absolute_path(name)).glob("*.py"))]
    for part in _parts(spec):
        file = re.match(r"(?:python:)?(.*?\.py):", part)
        module = re.match(r"python:([\w.]+):", part)
        if file:
            found.append(_absolute_path(file[1]))
        elif module:
            found.append(_module_file(module[1]) or module[1])
    return found


def _parts(spec: str) -> list[str]:
    """The augmentations of a recipe that has code among them; any other spec as it is, also where its path has a +."""
    whole = re.match(r"(?:python:)?(.*?\.py):[^+]*$", spec)
    if not _CODE.search(spec) or (whole and os.path.isfile(_absolute_path(whole[1]))):
        return [spec]
    return [part.strip() for part in spec.split("+")]


def _module_file(name: str) -> str | None:
    """``importlib.util.find_spec`` would import the packages that the module lies in."""
    here = [] if {"", os.getcwd()} & set(sys.path) else [os.getcwd()]
    places: Sequence[str] | None = None
    spec: ModuleSpec | None = None
    parts = name.split(".")
    for number in range(len(parts)):
        full = ".".join(parts[: number + 1])
        spec = _find(full, [*here, *sys.path] if places is None else places, top=places is None)
        if spec is None:
            return None
        places = list(spec.submodule_search_locations or ())
    return spec.origin if spec is not None and spec.has_location else None


def _find(name: str, places: Sequence[str], *, top: bool) -> ModuleSpec | None:
    from importlib.machinery import PathFinder

    found = PathFinder.find_spec(name, places)
    if found is not None:
        return found
    for finder in sys.meta_path:  # those of packages that are installed for editing
        find: Callable[..., ModuleSpec | None] | None = getattr(finder, "find_spec", None)
        if find is not None and (found := find(name, None if top else places)) is not None:
            return found
    return None


def _allowed(role: str, text: str) -> str | None:
    """What ``--allow`` gave for a text: the same, or the same name at another place."""
    same: list[str] = [own for own in _process["allowed"] if _last_name(own) == _last_name(text)]
    return absolute(same[0], role) if same else None


def _last_name(spec: str) -> str:
    name = portable(spec)
    return name if ":" in name else Path(name).name


def _is_folder(path: str) -> bool:
    return os.path.isdir(os.path.expanduser(path))


def _absolute_path(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def _sha256(path: str) -> str | None:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return None


def _file(folder: Path, role: str) -> Path:
    name = hashlib.sha256(os.fsencode(os.path.realpath(folder)) + b"\0" + role.encode()).hexdigest()
    return state_folder() / "given" / f"{name[:40]}.json"


def _read(file: Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError):
        record = json.loads(file.read_bytes())
        return record if isinstance(record, dict) else None
    return None


def _private(folder: Path) -> bool:
    """Whether nobody but this user can have written there."""
    try:
        status = folder.stat()
    except OSError:
        return False
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
