"""What the students of a report and their teacher say of the split that they are judged by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from softcache.cache.reader import Cache
from softcache.config.fit import FitConfig
from softcache.config.given import recorded_data_dir, recorded_teacher, remember_data
from softcache.config.record import Record
from softcache.config.teachers import default_data, find_teacher
from softcache.datasets._samples import Samples
from softcache.device import pick_device, reproducible
from softcache.errors import SoftcacheError
from softcache.evaluating.predictions import Judged, Predictions, cached_predictions, predictions
from softcache.models._arithmetic import Arithmetic
from softcache.models._network import Network
from softcache.models._open import open_network
from softcache.models._weights import fingerprint
from softcache.reporting.findings import Findings, Said
from softcache.reporting.students import Student
from softcache.stream.inputs import InputSource, pick_inputs
from softcache.views._open import Viewed, open_viewed

SPLIT = "test"
_HOW = "name it with --dataset"


@dataclass(frozen=True)
class Asked:
    """Where networks are run, and what the user named: ``teacher``, ``dataset`` and ``data_dir``, None where the
    folders say it; ``caches``: of which one may be of the split."""

    teacher: str | None = None
    dataset: str | None = None
    data_dir: str | None = None
    device: str = "auto"
    workers: int = -1
    caches: Sequence[Cache] = ()


def said_of(findings: Findings, asked: Asked) -> Said:
    """The best setting's first student that is done, the first on labels alone, and the teacher: three networks,
    however many students there are. What can't be had is left out with its reason."""
    if findings.best is None or findings.leading != "top1":
        why = "No student is done yet." if findings.best is None else "The labels are no classes."
        return Said(missing=dict.fromkeys(("student", "alone", "teacher"), why))
    student = _done(findings.best.students)
    try:
        viewed = _split(student, asked)
    except SoftcacheError as error:
        why = _sentence(f"The {SPLIT} split isn't at hand: {error}")
        return Said(missing=dict.fromkeys(("student", "alone", "teacher"), why))
    device = pick_device(asked.device)
    inputs = pick_inputs(viewed, device, workers=asked.workers)
    found: dict[str, Predictions] = {}
    missing: dict[str, str] = {}
    runs = {"student": student, "alone": _done(findings.alone.students) if findings.alone is not None else None}
    for name, run in runs.items():
        if run is None:
            missing[name] = (
                "No student on labels alone is among these runs, so what the teacher is worth to each class can't be "
                "seen: softcache compare trains both."
            )
            continue
        try:
            found[name] = _of_run(run, viewed, inputs, device)
        except SoftcacheError as error:
            missing[name] = _sentence(f"The student in {run.folder} can't be run: {error}")
    try:
        found["teacher"] = _of_teacher(findings, viewed, inputs, device, asked)
    except SoftcacheError as error:
        missing["teacher"] = _sentence(f"What the teacher says of the {SPLIT} split isn't at hand: {error}")
    return Said(viewed, missing=missing, **found)


def _done(students: Sequence[Student]) -> Student:
    """The first that is done."""
    return next((own for own in students if own.outcome.result is not None), students[0])


def _split(student: Student, asked: Asked) -> Viewed:
    folder = student.folder
    dataset, size = default_data(str(folder), asked.dataset, None)
    data_dir = asked.data_dir or recorded_data_dir(folder)
    viewed = open_viewed(dataset, SPLIT, data_dir=data_dir, augment="none", size=size)
    if student.record is not None:
        remember_data(folder, student.record.options, dataset)
    return viewed


def _of_run(run: Student, viewed: Viewed, inputs: InputSource, device: torch.device) -> Predictions:
    """As ``softcache eval`` runs it: in the precision that it was trained in."""
    network = _opened(str(run.folder.resolve()), viewed.samples)
    return _predicted(network, run.record, viewed, inputs, device)


def _of_teacher(
    findings: Findings, viewed: Viewed, inputs: InputSource, device: torch.device, asked: Asked
) -> Predictions:
    """From a cache of the split, or from the teacher itself, which must be the one that the students learnt from."""
    for cache in asked.caches:
        if cache.manifest.identity.dataset.split == viewed.samples.split:
            return cached_predictions(cache, viewed)
    cache = findings.cache
    if cache is None:
        raise SoftcacheError(
            "the cache that says who it is can't be opened; name it, or one of the split, with --cache"
        )
    spec = recorded_teacher(cache, asked.teacher)
    network = find_teacher(spec, viewed.samples)
    if fingerprint(network.model.state_dict()) != cache.manifest.identity.teacher.weights:
        raise SoftcacheError(
            f"{spec} has other parameters than the teacher of {cache.where}: name that one with --teacher"
        )
    numerics = cache.manifest.identity.teacher.numerics
    arithmetic = Arithmetic(numerics.amp, numerics.memory_format == "channels_last")
    return _run(network, arithmetic, viewed, inputs, device, tf32=numerics.tf32)


def _opened(folder: str, samples: Samples) -> Network:
    return open_network(
        folder,
        classes=len(samples.classes),
        class_names=samples.classes,
        statistics=samples.statistics,
        pictures=samples.pictures,
    )


def _predicted(
    network: Network, record: Record | None, viewed: Viewed, inputs: InputSource, device: torch.device
) -> Predictions:
    options = record.options if record is not None else None
    trained = options.amp if isinstance(options, FitConfig) and options.amp != "auto" else "off"
    last = isinstance(options, FitConfig) and bool(options.channels_last)
    tf32 = isinstance(options, FitConfig) and options.tf32
    return _run(network, Arithmetic(trained, last), viewed, inputs, device, tf32=tf32)


def _run(
    network: Network, arithmetic: Arithmetic, viewed: Viewed, inputs: InputSource, device: torch.device, *, tf32: bool
) -> Predictions:
    with reproducible(tf32=tf32):
        judged: Judged = (arithmetic.apply(network.to(device)), arithmetic.amp)
        return predictions([judged], viewed, inputs, device)[0]


def _sentence(text: str) -> str:
    return text if text.endswith(".") else text + "."
