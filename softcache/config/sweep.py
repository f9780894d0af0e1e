"""What ``softcache sweep`` and ``softcache compare`` can be asked for, and the file in which the folder of either says
what it trains."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from softcache import strictjson
from softcache.addresses import is_address
from softcache.atomic import replace_file
from softcache.config.folders import pick_cache
from softcache.config.given import FOLLOWED
from softcache.config.options import Options
from softcache.config.resume import MOVABLE
from softcache.config.several import GRID, SETTLED
from softcache.config.train import TrainConfig
from softcache.errors import SoftcacheError, UsageError, nearest
from softcache.remembered import absolute, follow_all, is_plain, remember

VERSION = 1
_CACHES = ("cache", "hint_cache", "strong_cache")
Config = TypeVar("Config", bound="ManyConfig")
_NUMBER = r"(\d+(?:\.\d+)?)"
_TIME = re.compile(rf"(?:{_NUMBER}h)?(?:{_NUMBER}m)?(?:{_NUMBER}s)?")


@dataclass(frozen=True, kw_only=True)
class ManyConfig(Options):
    """How many students are trained that one command asks for.

    ``seeds``: how many, from the options' ``seed`` on. ``processes``: that train beside each other, by default one a
    core, on a GPU one. ``at_once``: students that a process trains at once. ``out``: the folder of all of it.
    ``resume``: the folder of what was interrupted, which goes on.
    """

    seeds: int = 1
    processes: int | None = None
    at_once: int = 8
    out: str | None = None
    resume: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("seeds", "processes", "at_once"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} must be at least 1, is {value}")


@dataclass(frozen=True, kw_only=True)
class SweepConfig(ManyConfig):
    """What ``sweep`` was asked for, beside the options of ``train``. ``trials``: how many combinations are drawn, where
    not all of a grid are trained; options may then have ranges. ``prune``: whether students end early that fall
    behind those before. ``auto``: whether loss, T, alpha, beta and rate are searched, within ``budget``, such as
    ``30m``. ``join``: the folder of a sweep that this process is to help with."""

    trials: int | None = None
    prune: bool = True
    auto: bool = False
    budget: str | None = None
    join: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.auto and self.trials is not None:
            raise UsageError("--auto chooses what to try by itself, --trials draws it: give one of them")
        if self.budget is not None and not self.auto:
            raise UsageError(f"--budget {self.budget} is the time for --auto: give both")
        if self.budget is not None:
            budget_seconds(self.budget)
        if self.join is not None and self.resume is not None:
            raise UsageError("--join helps a sweep that runs, --resume goes on with one that doesn't: give one of them")
        if self.trials is not None and self.trials < 1:
            raise UsageError(f"--trials must be at least 1, is {self.trials}")


@dataclass(frozen=True, kw_only=True)
class CompareConfig(ManyConfig):
    """What ``compare`` was asked for, beside the options of ``train``. ``generations``: distilled students at most that
    follow each other, each taught by the one before."""

    seeds: int = 5
    generations: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.generations < 1:
            raise UsageError(f"--generations must be at least 1, is {self.generations}")


def budget_seconds(text: str) -> float:
    """The time that ``--budget`` gives.

    >>> budget_seconds("90s"), budget_seconds("1h30m"), budget_seconds("0.5h")
    (90.0, 5400.0, 1800.0)

    Errors: ``UsageError`` for another text, and for no time.
    """
    match = _TIME.fullmatch(text.replace(" ", ""))
    seconds = (
        sum(float(part) * unit for part, unit in zip(match.groups(), (3600, 60, 1), strict=True) if part)
        if match
        else 0
    )
    if not seconds:
        raise UsageError(f"--budget {text}: must be a time, such as 30m, 90s or 1h30m")
    return float(seconds)


# Where a command is run, and how it is gone on with, is no part of what is trained.
_UNRECORDED = ("processes", "out", "resume", "join")


@dataclass(frozen=True)
class Specification:
    """What is trained, complete: ``command`` (``sweep``, ``compare``); ``options``: those of the command and of
    ``train``, in a sweep those of ``GRID`` with a tuple of values, paths absolute; ``threads``: CPU threads of a
    process, on which the last bits of a run depend; ``at_once``: the largest cohort."""

    command: str
    options: dict[str, Any]
    threads: int
    at_once: int

    @property
    def of_train(self) -> dict[str, Any]:
        """The options of ``train`` among them."""
        known = {own.name for own in dataclasses.fields(TrainConfig)}
        return {name: value for name, value in self.options.items() if name in known}

    @property
    def tests(self) -> bool:
        """Whether every student sees the test split: a sweep chooses first."""
        return self.command != "sweep"

    def save(self, folder: Path) -> None:
        document = {"version": VERSION, **dataclasses.asdict(self)}
        replace_file(
            specification_file(folder, self.command),
            (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode(),
        )

    def named(self) -> dict[str, list[str]]:
        """Options that may be paths or code → all their values."""
        found = {name: list(_texts(self.options[name])) for name in FOLLOWED if self.options.get(name) is not None}
        return {name: values for name, values in found.items() if values}

    def to_allow(self) -> list[str]:
        """All values that are paths or code."""
        return [value for name, values in self.named().items() for value in values if not is_plain(name, value)]


def specification_file(folder: Path, command: str) -> Path:
    """``sweep.json`` of a sweep."""
    return folder / f"{command}.json"


def divided(cls: type[Config], options: Mapping[str, Any]) -> tuple[Config, dict[str, Any]]:
    """The options of the command itself, and those of ``train``: in a sweep the ones of ``GRID`` as tuples.

    Errors: ``UsageError`` with the nearest names for an option that neither has, and for values of another type.
    """
    several = GRID if cls is SweepConfig else ()
    own = {field.name for field in dataclasses.fields(cls)}
    train = {field.name for field in dataclasses.fields(TrainConfig)} - SETTLED
    for name in options:
        if name not in own | train:
            raise UsageError(f"{cls.__name__} has no option {name!r}{nearest(name, own | train)}")
    of_train = {name: _several(name, value, several) for name, value in options.items() if name not in own}
    typed = TrainConfig.of(**{name: value for name, value in of_train.items() if name not in several})
    of_train |= {name: getattr(typed, name) for name in of_train if name not in several}
    for name in several:
        if of_train.get(name) == ():
            raise UsageError(f"--{name.replace('_', '-')} has no value: give at least one")
    return cls.of(**{name: value for name, value in options.items() if name in own}), of_train


def absolute_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """With absolute paths, so that they can be followed from anywhere."""
    return {name: _made_absolute(value, name) if name in FOLLOWED else value for name, value in options.items()}


def read_specification(folder: Path, command: str) -> Specification:
    """Errors: ``SoftcacheError`` where there is none, for one of another version or command, and for anything in it
    that isn't known."""
    path = specification_file(folder, command)
    try:
        document = strictjson.loads(path.read_bytes())
    except FileNotFoundError:
        raise SoftcacheError(f"{folder} has no {path.name}: it is not the folder of a softcache {command}") from None
    except (OSError, ValueError) as error:
        raise SoftcacheError(f"{path} can't be read: {error}") from None
    if not isinstance(document, dict) or document.get("version") != VERSION:
        version = document.get("version") if isinstance(document, dict) else None
        raise SoftcacheError(f"{path} is of version {str(version)[:40]}, this softcache knows {VERSION}")
    if set(document) != {"version", *(own.name for own in dataclasses.fields(Specification))}:
        raise SoftcacheError(f"{path} has other entries than this softcache knows: it was made by another one")
    if document["command"] != command:
        raise SoftcacheError(f"{path} is of softcache {str(document['command'])[:40]}, not of softcache {command}")
    options, numbers = document["options"], [document["threads"], document["at_once"]]
    if not isinstance(options, dict) or not all(type(number) is int and number > 0 for number in numbers):
        raise SoftcacheError(f"{path} is not the specification of a sweep")
    several = GRID if command == "sweep" else ()
    values = {name: _several(name, value, several) for name, value in options.items()}
    return Specification(command, values, *numbers)


def remember_specification(folder: Path, specification: Specification) -> None:
    """Keeps what the user gave for the folder of a sweep that is made here."""
    for name, values in specification.named().items():
        remember(folder, name, values, _identity(folder, specification))


def followed(folder: Path, specification: Specification) -> None:
    """Errors: ``NotNamedError`` where the specification in ``folder`` names a path or code that the user never gave
    for it."""
    for name, values in specification.named().items():
        made = f"{folder} is of softcache {specification.command} --{name.replace('_', '-')} {' '.join(values)}"
        follow_all(folder, name, values, _identity(folder, specification), made=made)


def refuse_other_options(given: Mapping[str, Any], resume: str) -> None:
    """Errors: ``UsageError`` that names options beside those that may be given anew where a folder is gone on with."""
    others = [f"--{name.replace('_', '-')}" for name in sorted(given) if name not in (*MOVABLE, *_UNRECORDED)]
    if others:
        raise UsageError(f"{resume} has its own options: leave out {', '.join(others)}")


def recorded(config: ManyConfig) -> dict[str, Any]:
    """The options of the command itself that say what is trained."""
    return {name: value for name, value in config.to_json().items() if name not in _UNRECORDED and value is not None}


def _several(name: str, value: Any, several: Sequence[str]) -> Any:
    if name not in several:
        return tuple(value) if isinstance(value, list) else value
    if not isinstance(value, (list, tuple)):
        return (value,)
    return tuple(tuple(one) if isinstance(one, list) else one for one in value)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, (list, tuple)):
        for one in value:
            yield from _texts(one)
    elif isinstance(value, str):
        yield value


def _made_absolute(value: Any, name: str) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_made_absolute(one, name) for one in value)
    if value is not None and name in _CACHES and not is_address(str(value)):
        value = pick_cache(str(value), option=f"--{name.replace('_', '-')}")  # it may be a name in caches/
    return absolute(str(value), name) if value is not None else None


def _identity(folder: Path, specification: Specification) -> str:
    """The hash of what a folder is to train."""
    try:
        return hashlib.sha256(specification_file(folder, specification.command).read_bytes()).hexdigest()
    except OSError:
        return ""
