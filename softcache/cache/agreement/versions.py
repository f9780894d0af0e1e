"""Versions of the libraries that pixels depend on: as a cache has recorded them, beside those that are here."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from PIL import features

from softcache.cache.reader import Cache

_PACKAGES = ("pillow", "torchvision", "numpy")
_PLAIN = re.compile(r"[\w.+\-]{1,40}")  # what a manifest says is shown only where it looks like a version


def pixel_versions() -> dict[str, str]:
    """Package → version of what decodes, resizes and moves pixels here; ``libjpeg`` is the one inside Pillow."""
    found = {name: _version(name) for name in _PACKAGES}
    libjpeg = features.version("libjpeg_turbo") or features.version("jpg")
    return {**found, "libjpeg": libjpeg or "unknown"}


def recorded_versions(cache: Cache) -> dict[str, str]:
    """Package → version that a cache was begun with, where it says so."""
    made = cache.manifest.state.made
    return {name: version for name in pixel_versions() if (version := _recorded(made, name)) is not None}


def versions_note(cache: Cache) -> str:
    """`` (made with pillow 9.0.0, here 10.1.0)``: what the cache was begun with where it isn't what is here, else
    nothing."""
    here = pixel_versions()
    differing = [f"{k} {v}, here {here[k]}" for k, v in recorded_versions(cache).items() if v != here[k]]
    return f" (made with {'; '.join(differing)})" if differing else ""


def _recorded(made: dict[str, Any], name: str) -> str | None:
    recorded = made.get(name)
    return recorded if isinstance(recorded, str) and _PLAIN.fullmatch(recorded) else None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
