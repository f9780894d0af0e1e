"""What of a cache's, a run's or a teacher's own description may be acted on, and what is remembered for it.

A folder may come from anyone: it says what it was made from, and that is compared with what is here. Plain names are
followed; a path or code only where the user named it, now or before (``softcache.remembered``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

from softcache.cache.reader import Cache
from softcache.config.teach import TeachConfig
from softcache.config.train import TrainConfig
from softcache.datasets._fraction import same_fraction
from softcache.errors import NotNamedError, UsageError
from softcache.remembered import (
    allowing,
    folder_identity,
    follow,
    follow_all,
    is_plain,
    portable,
    portable_recipe,
    recall,
    remember,
)
from softcache.views._recipe import parse_recipe

# Options whose values may be paths or code, each a role of what is remembered.
FOLLOWED = (
    "student", "model", "dataset", "data_dir", "cache", "hint_cache", "strong_cache", "weights", "teacher",
    "teacher_weights", "augment", "codec", "loss", "hint", "log",
)  # fmt: skip


def recorded_recipe(cache: Cache, asked: str | None = None) -> str:
    """The recipe of a cache's views. One that is code of somebody's own has to be named by the user too (``asked``),
    now or before.

    Errors: ``UsageError`` where another one is asked for, ``NotNamedError`` where it is code and nobody named it.
    """
    spec = str(cache.manifest.identity.recipe["spec"])
    if asked is not None:
        if asked != spec and portable_recipe(parse_recipe(asked).spec) != spec:
            raise UsageError(f"--augment {asked}: the cache was made with {spec}; its views can't be changed now")
        return asked
    return _followed(cache, "augment", spec, "{} was made with the recipe {}")


def recorded_dataset(cache: Cache, asked: str | None = None) -> str:
    """The dataset that a cache was made from, where it has a name that is the same everywhere or the user gave it
    for this cache before; else what is asked.

    Errors: ``NotNamedError`` where it is a path or code that nobody named.
    """
    identity, made = cache.manifest.identity, cache.manifest.state.made
    if asked is not None:
        return same_fraction(asked, identity.dataset.spec, cache.where)
    return _followed(cache, "dataset", str(made.get("dataset", identity.dataset.spec)), "{} was made from {}")


def recorded_teacher(cache: Cache, asked: str | None = None) -> str:
    """The teacher of a cache, where it is a network's name or the user gave it for this cache before; else what is
    asked.

    Errors: ``NotNamedError`` where it is a path or code that nobody named.
    """
    if asked is not None:
        return asked
    identity, made = cache.manifest.identity, cache.manifest.state.made
    return _followed(cache, "teacher", str(made.get("teacher", identity.teacher.spec)), "the teacher of {} is {}")


def remember_cache(cache: Cache, **given: str | None) -> None:
    """Keeps what the user gave for a cache: ``dataset``, ``teacher``, ``augment`` or ``codec``. None, and names that
    mean the same everywhere, need no memory."""
    for role, spec in given.items():
        if spec is not None:
            remember(cache.folder, role, spec, cache.manifest.cache_id)


def recorded_dataset_of(folder: Path, options: TrainConfig | TeachConfig) -> str | None:
    """The dataset that the run or teacher in ``folder`` was trained on, by its recorded ``options``.

    Errors: ``NotNamedError`` where it is a path or code that nobody named.
    """
    if options.dataset is None:
        return None
    made, identity = f"{folder} was trained on {options.dataset}", folder_identity(folder)
    return follow(folder, "dataset", options.dataset, identity, made=made, option="--dataset")


def recorded_data_dir(folder: Path) -> str | None:
    """Where the run in ``folder`` found torchvision's datasets, if the user gave that here."""
    known = recall(folder, "data_dir", folder_identity(folder))
    return known.specs[0] if known is not None and known.specs else None


def recorded_caches(folder: Path, options: TrainConfig) -> tuple[str, ...]:
    """The caches that the run in ``folder`` was trained from, by its recorded ``options``.

    Errors: ``NotNamedError`` where one of them is a path that nobody gave for it.
    """
    made = f"{folder} was trained from {', '.join(options.cache)}"
    return follow_all(folder, "cache", options.cache, folder_identity(folder), made=made) if options.cache else ()


def recorded_live_teacher(folder: Path, options: TrainConfig) -> tuple[str, str | None]:
    """The teacher that the run in ``folder`` was trained with live, and its file of parameters, if it was one.

    Errors: ``NotNamedError`` where one of them is a path or code that nobody gave for it.
    """
    assert options.teacher is not None
    identity, made = folder_identity(folder), f"{folder} was trained with --online --teacher {options.teacher}"
    spec = follow(folder, "teacher", options.teacher, identity, made=made, option="--teacher")
    weights = options.teacher_weights
    return spec, weights and follow(folder, "teacher_weights", weights, identity, made=made, option="--teacher-weights")


def remember_data(folder: Path, options: TrainConfig | TeachConfig, dataset: str) -> None:
    """Keeps the dataset that the user gave for a run or teacher, where it has the name of the one that its recorded
    ``options`` say."""
    if options.dataset is not None and portable(options.dataset) == portable(dataset):
        known = recall(folder, "dataset", folder_identity(folder))
        if known is None or known.changed is not None:
            remember(folder, "dataset", dataset, folder_identity(folder))


def remember_folder(folder: Path, options: TrainConfig | TeachConfig, model: str) -> None:
    """Keeps what the user gave for a run or teacher that is made here: all that its options name, and the spec of its
    network. For whoever writes its ``config.json``, once all of it was opened."""
    identity = folder_identity(folder)
    for name, values in _named(options).items():
        remember(folder, name, values, identity)
    remember(folder, "model", model, identity)


def followed_options(folder: Path, options: TrainConfig, anew: Collection[str] = ()) -> TrainConfig:
    """The recorded options of the run in ``folder``, with which it may be resumed.

    ``anew``: names of options that the user gives again. Errors: ``NotNamedError`` where another one is a path or
    code that the user never gave for this run.
    """
    identity = folder_identity(folder)
    refused: dict[str, NotNamedError] = {}
    followed: dict[str, Any] = {}
    for name, values in _named(options).items():
        if name in anew:
            continue
        made = f"{folder} was trained with --{name.replace('_', '-')} {' '.join(values)}"
        try:
            found = follow_all(folder, name, values, identity, made=made)
        except NotNamedError as error:
            refused |= {value: error for value in values if not is_plain(name, value)}
            continue
        followed[name] = found[0] if isinstance(getattr(options, name), str) else found
    if len(refused) == 1:
        raise next(iter(refused.values()))
    if refused:
        raise NotNamedError(
            f"{folder} was trained with {', '.join(refused)}. For safety, softcache does not open a path or run code "
            f"that is named only in a folder: begin the command with `{allowing(list(refused))}`"
        )
    return dataclasses.replace(options, **followed)


def _named(options: TrainConfig | TeachConfig) -> dict[str, list[str]]:
    """Options that may be paths or code → their values as a list."""
    found = {}
    for name in FOLLOWED:
        value = getattr(options, name, None)
        values = [value] if isinstance(value, str) else list(value or ())
        if values:
            found[name] = values
    return found


def _followed(cache: Cache, role: str, spec: str, made: str) -> str:
    sentence = made.format(cache.where, spec)
    return follow(cache.folder, role, spec, cache.manifest.cache_id, made=sentence, option=f"--{role}")
