"""What of a manifest may be acted on. A cache may come from anyone: it says what it was made from, and that is
compared with what is here; it never makes this process import code or open files elsewhere."""

from __future__ import annotations

import re
import shlex

from softcache.cache.reader import Cache
from softcache.datasets._fraction import same_fraction
from softcache.errors import CacheError, UsageError
from softcache.views._recipe import parse_recipe

_BY_NAME = re.compile(r"(torchvision:)?[A-Za-z0-9_][A-Za-z0-9_.\-]*")
_NETWORK = re.compile(r"((cifar|timm|torchvision):)?[A-Za-z0-9_][A-Za-z0-9_.\-]*")


def recorded_recipe(cache: Cache, asked: str | None = None) -> str:
    """The recipe of a cache's views. One that is code of somebody's own has to be named by the user too (``asked``).

    Errors: ``UsageError`` where another one is asked for, ``CacheError`` where it is code and nobody asked for it.
    """
    spec = str(cache.manifest.identity.recipe["spec"])
    if asked is not None:
        if asked != spec and parse_recipe(asked).spec != spec:
            raise UsageError(f"--augment {asked}: the cache was made with {spec}; its views can't be changed now")
        return spec
    if any(part.startswith("python:") or ".py:" in part for part in spec.split("+")):
        raise CacheError(
            f"{cache.folder} was made with code, {spec}, and no code is run because a file says so: "
            f"if you trust it, pass --augment {shlex.quote(spec)}"
        )
    return spec


def recorded_dataset(cache: Cache, asked: str | None = None) -> str:
    """The dataset that a cache was made from, where it has a name that is the same everywhere; else what is asked.

    Errors: ``CacheError`` where it is a path or code and nobody asked for it.
    """
    identity, made = cache.manifest.identity, cache.manifest.state.made
    if asked is not None:
        return same_fraction(asked, identity.dataset.spec, str(cache.folder))
    spec = str(made.get("dataset", identity.dataset.spec))
    if not _BY_NAME.fullmatch(spec):
        raise CacheError(
            f"{cache.folder} was made from {spec}, and no path or code is followed because a file says so: "
            f"pass --dataset {shlex.quote(spec)}, or where you have it"
        )
    return spec


def recorded_teacher(cache: Cache, asked: str | None = None) -> str:
    """The teacher of a cache, where it is a network's name; else what is asked.

    Errors: ``CacheError`` where it is a path or code and nobody asked for it.
    """
    if asked is not None:
        return asked
    identity, made = cache.manifest.identity, cache.manifest.state.made
    spec = str(made.get("teacher", identity.teacher.spec))
    if not _NETWORK.fullmatch(spec):
        raise CacheError(
            f"the teacher of {cache.folder} is {spec}, and no path or code is followed because a file says so: "
            f"pass --teacher {shlex.quote(spec)}, or where you have it"
        )
    return spec
