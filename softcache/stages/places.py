"""Where things are found and put when nobody says: teachers/, caches/, runs/, and the data itself."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

from softcache.atomic import part_path, replace_file
from softcache.cache.reader import find_caches
from softcache.datasets._open import open_samples
from softcache.datasets._samples import Samples
from softcache.errors import CacheError, ModelError, SoftcacheError
from softcache.models._network import Network
from softcache.models._open import open_network
from softcache.views._viewed import ViewedDataset

CONFIG = "config.json"
TEACHER_FILE, STUDENT_FILE = "teacher.safetensors", "student.safetensors"


def slug(spec: str) -> str:
    """A spec as part of a folder name: ``cifar:resnet56`` → ``cifar-resnet56``, ``folder:/data/pets`` → ``pets``."""
    if spec.startswith(("folder:", "arrays:")):
        spec = Path(spec.partition(":")[2]).stem
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


def new_run_folder(student: str) -> Path:
    """``runs/resnet18-1``, or the next number that is free; made at once, so that two runs never share one."""
    number = 1
    while True:
        folder = Path("runs") / f"{slug(student)}-{number}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1


def make_folder(folder: Path) -> None:
    """Errors: ``SoftcacheError`` that names the folder where it can't be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = part_path(folder / "writable")  # a name of our own: others may be asking at the same time
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise SoftcacheError(f"can't write to {folder}: {error.strerror or error}") from None


def write_config(folder: Path, config: dict[str, Any]) -> None:
    replace_file(folder / CONFIG, (json.dumps(config, indent=1, ensure_ascii=False) + "\n").encode())


def read_config(folder: Path) -> dict[str, Any]:
    """Errors: ``SoftcacheError`` where there is none or it isn't one."""
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except FileNotFoundError:
        raise SoftcacheError(f"{folder} has no {CONFIG}: it is neither a run nor a teacher") from None
    except (OSError, ValueError) as error:
        raise SoftcacheError(f"{folder / CONFIG} can't be read: {error}") from None
    if not isinstance(config, dict):
        raise SoftcacheError(f"{folder / CONFIG} is not a configuration")
    return config


def open_viewed(
    dataset: str,
    split: str,
    *,
    data_dir: str | None = None,
    download: bool = False,
    augment: str | None = None,
    view_seed: int = 0,
    size: int | None = None,
) -> ViewedDataset:
    """One split of a dataset, seen through a recipe (by default the dataset's own).

    ``size``: side of the views in pixels, by default the dataset's. Errors: ``DatasetError`` where the samples aren't
    there or can't be read, ``UsageError`` for an unknown dataset or recipe or a size that can't be.
    """
    samples = open_samples(dataset, split, data_dir=data_dir, download=download)
    return ViewedDataset(samples, augment, seed=view_seed, size=size)


def known_folder(model: str) -> Path | None:
    """The folder that ``model`` is: a run's or a teacher's own, or that of a teacher by the name in ``teachers/``."""
    if Path(model).is_dir():
        return Path(model)
    named = Path("teachers") / model  # the name that `softcache teach` printed
    return named if (named / TEACHER_FILE).exists() else None


def recorded_options(folder: Path) -> dict[str, Any]:
    """What the run or teacher in ``folder`` was trained with, its dataset and size among it."""
    config = read_config(folder)
    recorded = config.get("train") or config.get("teach")
    return recorded if isinstance(recorded, dict) else {}


def default_data(model: str | None, dataset: str | None, size: int | None) -> tuple[str, int | None]:
    """Dataset and side of the views in pixels, where nobody says: those that ``model`` was trained on, if it is a
    folder or has one in ``teachers/``, else digits at their own size."""
    if model is None:
        return dataset or "digits", size
    folder = known_folder(model)
    if folder is None and (teacher_folder(model, dataset or "digits") / TEACHER_FILE).exists():
        folder = teacher_folder(model, dataset or "digits")
    recorded = recorded_options(folder) if folder is not None else {}
    return dataset or recorded.get("dataset") or "digits", size or recorded.get("size")


def teacher_source(
    teacher: str, samples: Samples, weights: str | None = None, *, option: str = "--teacher-weights"
) -> tuple[str, str | None]:
    """What ``open_network`` is asked for: the teacher by its folder, by its name in ``teachers/``, with the weights
    that are given, or pretrained by torchvision; the spec, and the name or file of weights. ``option``: what weights
    are given with.

    Errors: ``ModelError`` that says how to get one where none of these has parameters for it.
    """
    classes = len(samples.classes) or None
    if weights is not None:
        return teacher, weights
    folder = known_folder(teacher)
    if folder is not None:
        return (str(folder) if os.sep in str(folder) else f"./{folder}"), None
    own = teacher_folder(teacher, samples.spec)
    if (own / TEACHER_FILE).exists():
        return str(own), None
    if classes in (1000, None) and ":" not in teacher:
        return teacher, "DEFAULT"
    # an unknown name is the first thing to say
    open_network(teacher, classes=classes, statistics=samples.statistics)
    raise ModelError(
        f"no weights for {teacher} on {slug(samples.spec)} ({classes} classes): train them with "
        f"`softcache teach --model {shlex.quote(teacher)} --dataset {shlex.quote(samples.spec)}`, or pass {option} FILE"
    )


def find_teacher(
    teacher: str,
    samples: Samples,
    *,
    weights: str | None = None,
    normalize: str | None = None,
    size: int | None = None,
) -> Network:
    """The teacher with its parameters, wherever ``teacher_source`` finds it."""
    spec, chosen = teacher_source(teacher, samples, weights)
    classes = len(samples.classes) or None
    return open_network(
        spec, classes=classes, statistics=samples.statistics, weights=chosen, normalize=normalize, size=size
    )


def pick_cache(cache: str | None, root: str = "caches") -> Path:
    """The cache that was named, or the only one there is.

    Errors: ``CacheError`` with the list of caches where there are several, or with the command that makes one.
    """
    if cache is not None:
        folder = Path(cache)
        if not (folder / "cache.json").exists() and (Path(root) / cache / "cache.json").exists():
            return Path(root) / cache
        return folder
    found = find_caches(root)
    if len(found) == 1:
        return found[0]
    if not found:
        raise CacheError(f"there is no cache in {root}/: make one with `softcache dump --teacher resnet50`")
    raise CacheError(f"there are {len(found)} caches, choose one with --cache: {', '.join(map(str, found))}")
