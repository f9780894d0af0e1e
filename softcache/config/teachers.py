"""Where teachers are found: by a folder, by a name in ``teachers/``, by weights, or by what a cache has recorded."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from softcache.cache.reader import Cache
from softcache.config.folders import slug, teacher_folder
from softcache.config.given import recorded_dataset_of, recorded_teacher
from softcache.config.record import TEACHER_FILE, Record, read_record, recorded_options
from softcache.datasets._fraction import same_fraction, split_fraction
from softcache.datasets._index import describe_data
from softcache.datasets._open import open_samples
from softcache.datasets._samples import Samples
from softcache.errors import ModelError, SoftcacheError, UsageError
from softcache.localfiles import local_path
from softcache.models._array_model import ArrayModel
from softcache.models._network import Network
from softcache.models._open import open_network
from softcache.models._weights import fingerprint
from softcache.remembered import portable


def known_folder(model: str) -> Path | None:
    """The folder that ``model`` is: a run's or a teacher's own, or that of a teacher by the name in ``teachers/``."""
    if "://" in model:
        local_path(model, "the model")
    if Path(model).is_dir():
        return Path(model)
    named = Path("teachers") / model  # the name that `softcache teach` printed
    return named if (named / TEACHER_FILE).exists() else None


def own_teacher(model: str, samples: Samples) -> Path | None:
    """The folder in ``teachers/`` of the teacher that ``teach`` made of ``model`` on these samples, if there is one.

    Errors: ``ModelError`` where that folder has the name and holds a teacher of other data.
    """
    folder = teacher_folder(model, samples.spec)
    if not (folder / TEACHER_FILE).exists():
        return None
    recorded = read_record(folder).data
    if recorded is not None and not _same_data(recorded, samples):
        raise ModelError(
            f"{folder} was trained on {recorded.get('spec')}, which is other data than {samples.spec}: if it is the "
            f"teacher that you mean, name its folder, ./{folder}; else train one with `softcache teach --model "
            f"{shlex.quote(model)} --dataset {shlex.quote(samples.spec)} --out FOLDER`"
        )
    return folder


def _same_data(recorded: dict[str, Any], samples: Samples) -> bool:
    """Whether a teacher's own record is of these samples, or of others of their dataset; its spec is not opened."""
    if recorded.get("spec") == samples.spec:
        return True
    try:
        split = str(recorded.get("split"))
        same_split = samples if samples.split == split else open_samples(samples.spec, split)
    except SoftcacheError:
        return False
    now = describe_data(same_split)
    return all(recorded.get(key) == now[key] for key in ("fingerprint", "labels"))


def default_data(model: str | None, dataset: str | None, size: int | None) -> tuple[str, int | None]:
    """Dataset and side of the views in pixels, where nobody says: those that ``model`` was trained on, if it is a
    folder or has one in ``teachers/``, else digits at their own size."""
    if model is None:
        return dataset or "digits", size
    folder = known_folder(model)
    if folder is None and (teacher_folder(model, dataset or "digits") / TEACHER_FILE).exists():
        folder = teacher_folder(model, dataset or "digits")
    recorded = recorded_options(folder) if folder is not None else None
    if folder is None or recorded is None:
        return dataset or "digits", size
    if dataset is None:
        return recorded_dataset_of(folder, recorded) or "digits", size or recorded.size
    if recorded.dataset is not None and _same_files(dataset, recorded.dataset):
        # Another share would take files for the test split that the network was trained on.
        dataset = same_fraction(dataset, recorded.dataset, str(folder))
    return dataset, size or recorded.size


def _same_files(one: str, other: str) -> bool:
    """Whether two specs name files of one name, however they divide them."""
    return portable(split_fraction(one)[0]) == portable(split_fraction(other)[0])


def teacher_source(
    teacher: str, samples: Samples, weights: str | None = None, *, option: str = "--teacher-weights"
) -> tuple[str, str | None]:
    """What ``open_network`` is asked for, as ``known_source`` finds it. ``option``: what weights are given with.

    Errors: ``ModelError`` that says how to get one where there are no parameters for it.
    """
    found = known_source(teacher, samples, weights)
    if found is not None:
        return found
    classes = len(samples.classes) or None
    # an unknown name is the first thing to say
    opened = open_network(teacher, classes=classes, statistics=samples.statistics, pictures=samples.pictures)
    if isinstance(opened.model, ArrayModel):  # it has all that it needs
        return teacher, None
    others = [str(path) for path in sorted(Path("teachers").glob(f"{slug(teacher)}-*")) if path.is_dir()]
    named = f"; for the data of {', '.join(others)} name that folder in place of {teacher}" if others else ""
    raise ModelError(
        f"no weights for {teacher} on {slug(samples.spec)} ({classes} classes): train them with "
        f"`softcache teach --model {shlex.quote(teacher)} --dataset {shlex.quote(samples.spec)}`, or pass {option} FILE"
        f"{named}"
    )


def known_source(teacher: str, samples: Samples, weights: str | None = None) -> tuple[str, str | None] | None:
    """A teacher by its folder, by its name in ``teachers/``, with the weights that are given, or pretrained by
    torchvision or as the hub has it: the spec, and the name or file of weights; None where none of these is known."""
    classes = len(samples.classes) or None
    if weights is not None:
        return teacher, weights
    folder = known_folder(teacher)
    if folder is not None:
        return (str(folder) if os.sep in str(folder) else f"./{folder}"), None
    own = own_teacher(teacher, samples)
    if own is not None:
        return str(own), None
    if teacher.startswith("hf:") or (classes in (1000, None) and ":" not in teacher):
        return teacher, "DEFAULT"  # a name on the hub is that of parameters, not of an architecture alone
    return None


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
        spec,
        classes=classes,
        class_names=samples.classes,
        statistics=samples.statistics,
        weights=chosen,
        normalize=normalize,
        size=size,
        pictures=samples.pictures,
    )


def open_teacher(
    needed: str,
    samples: Samples,
    caches: Sequence[Cache],
    *,
    teacher: str | None = None,
    weights: str | None = None,
) -> Network:
    """The network of a teacher beside what a cache holds of it: the one that is named, or the cache's own.

    ``needed``: the option that needs it, for messages. Errors: ``ModelError`` where it isn't found any more, or isn't
    the teacher that the caches were made with though hints need that one.
    """
    if teacher is not None:
        network = find_teacher(teacher, samples, weights=weights)
        if needed.startswith("--hint"):
            check_own(network, caches, teacher)
        return network
    spec = recorded_teacher(caches[0])
    try:
        network = find_teacher(spec, samples, weights=weights)
    except (ModelError, UsageError) as error:
        raise ModelError(
            f"{needed} needs the parameters of {spec}, the teacher of {caches[0].where}: name it with --teacher, or "
            f"its file with --teacher-weights ({error})"
        ) from None
    check_own(network, caches, spec)
    return network


def check_own(network: Network, caches: Sequence[Cache], spec: str) -> None:
    """Errors: ``ModelError`` for a network of other parameters than the teachers of ``caches`` had."""
    found = fingerprint(network.model.state_dict())
    if all(cache.manifest.identity.teacher.weights != found for cache in caches):
        raise ModelError(
            f"{spec} has parameters {found[:12]}…, {caches[0].where} was made with "
            f"{caches[0].manifest.identity.teacher.weights[:12]}…: give those with --teacher or --teacher-weights"
        )


def refuse_other_teacher(folder: Path, record: Record[Any], given: str, weights: str, cure: str) -> None:
    """Errors: ``ModelError`` where parameters with the fingerprint ``weights`` are of none of the teachers that the run
    in ``folder`` has learnt from, by its ``record``. A run on labels alone has learnt from none and is compared with
    any. ``given``: what the parameters are of, as the beginning of a sentence; ``cure``: what to do."""
    if record.teachers and all(one["weights"] != weights for one in record.teachers):
        own = " and ".join(f"{one['teacher']} with parameters {one['weights'][:12]}…" for one in record.teachers)
        raise ModelError(f"{given} parameters {weights[:12]}…, but {folder} learnt from {own}: {cure}")
