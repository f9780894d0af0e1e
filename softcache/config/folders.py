"""Where things are found and put when nobody says: teachers/, caches/ and runs/."""

from __future__ import annotations

import re
from pathlib import Path

from softcache.atomic import temporary_path
from softcache.cache.manifest import find_caches
from softcache.datasets._fraction import split_fraction
from softcache.errors import CacheError, SoftcacheError
from softcache.hub import split_options
from softcache.localfiles import local_path


def slug(spec: str) -> str:
    """A spec as part of a folder name: ``cifar:resnet56`` → ``cifar-resnet56``, ``folder:/data/pets`` → ``pets``.

    A test fraction is part of it, ``pets-test0.2``, for another share is another set of images to train on; so is the
    configuration of a dataset on the hub (``hf:nyu-mll/glue,config=sst2`` → ``glue-sst2``), but not its commit.
    """
    spec, fraction = split_fraction(spec)
    if fraction is not None:
        return f"{slug(spec)}-test{fraction:g}"
    if spec.startswith(("folder:", "csv:", "parquet:", "arrays:")):
        spec = Path(spec.partition(":")[2]).stem
    elif spec.startswith("hf:"):
        name, options = split_options(spec)
        spec = "-".join([name.rstrip("/").rpartition("/")[2], *filter(None, [options.get("config")])])
    elif "/" in spec:
        spec = spec.rstrip("/").rpartition("/")[2]
    return re.sub(r"[^\w.\-]+", "-", spec).strip("-.") or "unnamed"


def teacher_folder(model: str, dataset: str) -> Path:
    return Path("teachers") / f"{slug(model)}-{slug(dataset)}"


def cache_folder(teacher: str, dataset: str, split: str) -> Path:
    """``caches/resnet50-digits-train``; a teacher's own folder already names its dataset."""
    name = slug(teacher)
    if not name.endswith(f"-{slug(dataset)}"):
        name = f"{name}-{slug(dataset)}"
    return Path("caches") / f"{name}-{split}"


def new_folder(root: str, spec: str) -> Path:
    """``runs/resnet18-1`` in ``root``, or the next number that is free; made at once, so that no two commands ever
    share one."""
    number = 1
    while True:
        folder = Path(root) / f"{slug(spec)}-{number}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1


def make_folder(folder: Path) -> None:
    """Errors: ``SoftcacheError`` that names the folder where it can't be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = temporary_path(folder / "writable")  # a name of our own: others may be asking at the same time
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise SoftcacheError(f"can't write to {folder}: {error.strerror or error}") from None


def pick_cache(cache: str | None, root: str = "caches", *, option: str = "the cache") -> Path:
    """The cache that was named, or the only one there is.

    ``option``: what it was named with. Errors: ``UsageError`` for an address of another machine, ``CacheError`` with
    the list of caches where there are several, or with the command that makes one.
    """
    if cache is not None:
        folder = local_path(cache, option)
        if not (folder / "cache.json").exists() and (Path(root) / cache / "cache.json").exists():
            return Path(root) / cache
        return folder
    found = find_caches(root)
    if len(found) == 1:
        return found[0]
    if not found:
        raise CacheError(f"there is no cache in {root}/: make one with `softcache dump --teacher resnet50`")
    raise CacheError(f"there are {len(found)} caches, choose one with --cache: {', '.join(map(str, found))}")
