"""Train a student from caches, from a live teacher, or on labels alone: ``softcache train``."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

import softcache
from softcache.cache.reader import Cache
from softcache.console import say, size
from softcache.datasets._subset import labelled_rows
from softcache.errors import CacheError, LockedError, PixelsError, SoftcacheError, UsageError
from softcache.losses._schedule import Schedule
from softcache.losses._terms import parse_terms
from softcache.models._folder import describe, save_network
from softcache.models._open import open_network
from softcache.stages.agreement import check_dataset, check_pixels, refuse_pixels
from softcache.stages.dump import DEFAULT_VIEWS, DTYPES, set_tf32
from softcache.stages.places import (
    CONFIG,
    STUDENT_FILE,
    find_teacher,
    make_folder,
    new_run_folder,
    open_viewed,
    pick_cache,
    read_config,
    write_config,
)
from softcache.stages.teach import evaluator
from softcache.training.config import FitConfig, pick_device
from softcache.training.evaluation import Accuracy
from softcache.training.loop import fit
from softcache.training.objective import Objective
from softcache.training.pixels import ResidentPixels, memory_budget, pick_pixels
from softcache.training.plan import Plan
from softcache.training.stream import Stream
from softcache.training.teacher import CachedTeacher, LiveTeacher
from softcache.views._viewed import ViewedDataset


@dataclass(frozen=True)
class TrainConfig(FitConfig):
    """What ``train`` was asked for. The defaults are for digits (benchmarks/defaults.py shows what they reach).

    ``views``: how many recorded views are visited in turn; by default all that the cache has. ``label_fraction``:
    the share of the labels that the hard term may use.
    """

    epochs: int = 8
    batch_size: int = 64
    optimizer: str = "adamw"
    lr: float = 2e-3
    weight_decay: float = 1e-2
    warmup: float = 1.0
    student: str = "resnet18"
    dataset: str | None = None
    data_dir: str | None = None
    download: bool = False
    cache: tuple[str, ...] = ()
    T: str = "4"
    alpha: str = "0.9"
    beta: str | None = None
    losses: tuple[str, ...] = ()
    views: int | None = None
    view_seed: int = 0
    augment: str | None = None
    size: int | None = None
    label_fraction: float = 1.0
    normalize: str | None = None
    weights: str | None = None
    online: bool = False
    teacher: str | None = None
    teacher_weights: str | None = None
    dtype: str = "float32"
    pixels: str = "exact"
    verify_reads: bool = False
    log_every: int = 0

    def alpha_is_zero(self) -> bool:
        return Schedule.parse(self.alpha).bounds() == (0.0, 0.0)


@dataclass
class Trained:
    """The run's folder, its last accuracy on the test split, seconds of training, and of the teacher within them."""

    folder: Path
    test: Accuracy | None
    seconds: float
    teacher_s: float
    lines: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class _Source:
    """Where soft targets come from, and the keys that go with them."""

    viewed: ViewedDataset
    caches: list[Cache]
    views: int | None
    dataset: str


def train(
    student: str = "resnet18", *, out: str | Path | None = None, resume: str | Path | None = None, **options: Any
) -> Trained:
    """Trains ``student`` and writes ``config.json``, ``metrics.jsonl`` and ``student.safetensors`` into a run folder.

    ``options``: the fields of ``TrainConfig``; ``out``: the folder, by default ``runs/STUDENT-<n>``; ``resume``: a run
    that was interrupted, whose own options are taken. Errors: ``CacheError`` where the cache doesn't fit the data,
    ``PixelsError`` where pixels are not those that the teacher saw.
    """
    if resume is not None:
        folder = Path(resume)
        recorded = read_config(folder).get("train")
        if not isinstance(recorded, dict):
            raise SoftcacheError(f"{folder} is not a run of softcache train")
        fields = {f.name for f in dataclasses.fields(TrainConfig)}
        tuples: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in recorded.items() if k in fields}
        config = TrainConfig(**tuples)
    else:
        config = TrainConfig(student=student, **options)
    check_options(config)
    alone = config.alpha_is_zero() and not config.online
    source = _source(config, alone)
    samples = source.viewed.samples
    device = pick_device(config.device)
    network = open_network(
        config.student,
        classes=source.caches[0].manifest.identity.classes if source.caches else len(samples.classes),
        statistics=samples.statistics,
        weights=config.weights,
        normalize=config.normalize,
        seed=config.seed,
    )
    if resume is None:
        folder = Path(out) if out is not None else new_run_folder(config.student)
        if (folder / CONFIG).exists():
            raise SoftcacheError(f"{folder} holds a run already: use another --out, or --resume {folder}")
        make_folder(folder)
    try:
        with FileLock(folder / ".lock", timeout=0):
            return _train(network, source, config, device, folder, alone, resume is not None)
    except Timeout:
        raise LockedError(f"another process is training into {folder}") from None


def check_options(config: TrainConfig) -> None:
    """Errors: ``UsageError`` for combinations that can't be, before anything is opened."""
    alpha = Schedule.parse(config.alpha)
    if alpha.bounds()[0] < 0:
        raise UsageError(f"--alpha can't be negative, is {config.alpha}")
    if Schedule.parse(config.T).bounds()[0] <= 0:
        raise UsageError(f"--T must be above 0, is {config.T}")
    if config.online and config.teacher is None:
        raise UsageError("--online runs a teacher live: name it with --teacher")
    if config.online and config.cache:
        raise UsageError("--online and --cache exclude each other: targets come live or from a cache")
    if config.teacher is not None and not config.online:
        raise UsageError("--teacher goes with --online; a cache knows its teacher")
    if config.alpha_is_zero() and config.cache:
        raise UsageError("--alpha 0 trains on labels alone: leave out --cache, or raise --alpha")
    if not 0 < config.label_fraction <= 1:
        raise UsageError(f"--label-fraction must be above 0 and at most 1, is {config.label_fraction:g}")
    if config.pixels not in ("exact", "close"):
        raise UsageError(f"--pixels {config.pixels!r} is unknown: exact, close")
    if config.views is not None and config.views < 1:
        raise UsageError(f"--views must be at least 1, is {config.views}")
    parse_terms(config.losses)


def _source(config: TrainConfig, alone: bool) -> _Source:
    data: dict[str, Any] = {"data_dir": config.data_dir, "download": config.download}
    if alone or config.online:
        dataset = config.dataset or "digits"
        viewed = open_viewed(
            dataset, "train", augment=config.augment, view_seed=config.view_seed, size=config.size, **data
        )
        # A labels-only run sees a fresh view every epoch, so that the baseline isn't handicapped.
        views = config.views or (None if alone else DEFAULT_VIEWS)
        return _Source(viewed, [], views, dataset)
    names: tuple[str | None, ...] = config.cache or (None,)
    caches = [Cache(pick_cache(name), verify_reads=config.verify_reads) for name in names]
    manifest = caches[0].manifest
    recipe, made = manifest.identity.recipe, manifest.state.made
    dataset = config.dataset or str(made.get("dataset", manifest.identity.dataset.spec))
    wanted = {"augment": config.augment, "size": config.size}
    recorded = {"augment": recipe["spec"], "size": recipe["size"]}
    for key, value in wanted.items():
        if value is not None and value != recorded[key]:
            raise UsageError(
                f"--{key} {value}: the cache was made with {recorded[key]}; its views can't be changed now"
            )
    viewed = open_viewed(
        dataset,
        manifest.identity.dataset.split,
        augment=recipe["spec"],
        view_seed=recipe["seed"],
        size=recipe["size"],
        **data,
    )
    for cache in caches:
        check_dataset(cache, viewed)
        check_pixels(cache, viewed, accept_close=config.pixels == "close")
    complete = set.intersection(*(set(cache.complete_views()) for cache in caches))
    count = next((view for view in range(len(complete) + 1) if view not in complete), 0)
    if count == 0 or (config.views or 0) > count:
        raise CacheError(
            f"{caches[0].folder} has {count} complete views, {config.views or 1} are asked for: "
            "run softcache dump again to complete it"
        )
    return _Source(viewed, caches, config.views or count, dataset)


def _train(
    network: Any, source: _Source, config: TrainConfig, device: torch.device, folder: Path, alone: bool, resume: bool
) -> Trained:
    samples = source.viewed.samples
    visible = samples.labels.copy()
    rows = np.arange(len(samples))
    if config.label_fraction < 1:
        may = labelled_rows(samples.labels, config.label_fraction, config.seed)
        visible[~may] = -1
    if alone:
        rows = np.flatnonzero(visible >= 0)
        if not len(rows):
            raise UsageError("a training on labels alone needs labels, and this dataset has none")
    # On few labels alone: as many steps as on all rows, from the labelled ones.
    plan = Plan(rows, config.batch_size, config.seed, source.views, length=len(samples) if alone else None)
    set_tf32(False)
    pixels = pick_pixels(source.viewed, device, resident=config.resident, workers=config.workers)
    teacher = _teacher(config, source, device, resident=isinstance(pixels, ResidentPixels))
    stream = Stream(
        source.viewed, pixels, plan, device, visible=visible, teacher=teacher, exact=config.pixels == "exact"
    )
    objective = Objective(
        [] if alone else parse_terms(config.losses),
        Schedule.parse("0" if alone else config.alpha),
        Schedule.parse(config.beta) if config.beta is not None else None,
        Schedule.parse(config.T),
        config.epochs,
        config.label_smoothing,
    )
    evaluate = evaluator(source.dataset, source.viewed.size, config, device)
    document = {
        "train": {**config.to_json(), "dataset": source.dataset, "views": source.views},
        "model": {**describe(network), "weights": STUDENT_FILE},
        "caches": [{"path": str(c.folder.resolve()), "cache_id": c.manifest.cache_id} for c in source.caches],
        "softcache": softcache.__version__,
        "torch": str(torch.__version__),
    }
    write_config(folder, document)
    targets = "labels alone" if alone else "live teacher" if config.online else f"cache {source.caches[0].folder}"
    shown_views = "fresh views" if source.views is None else f"{source.views} views"
    say(
        f"train {config.student} on {source.dataset}: {plan.keys:,} keys an epoch, {shown_views}, {targets}, "
        f"stream {stream.name}, {config.epochs} epochs on {device}"
    )
    try:
        fitted = fit(
            network, stream, objective, config, device, folder, evaluate, log_every=config.log_every, resume=resume
        )
    except PixelsError as error:
        refuse_pixels(error, source.caches, source.viewed)
    save_network(network, folder, STUDENT_FILE)
    test = evaluate(network) if fitted.lines else None
    teacher_s = sum(line["teacher_s"] for line in fitted.lines)
    result = {
        "test_top1": test.top1 if test else None,
        "seconds": round(fitted.seconds, 3),
        "teacher_s": round(teacher_s, 3),
        "student": size((folder / STUDENT_FILE).stat().st_size),
    }
    write_config(folder, {**document, "result": result})
    return Trained(folder, test, fitted.seconds, teacher_s, fitted.lines)


def _teacher(
    config: TrainConfig, source: _Source, device: torch.device, *, resident: bool
) -> CachedTeacher | LiveTeacher | None:
    if config.online:
        assert config.teacher is not None
        network = find_teacher(config.teacher, source.viewed.samples, weights=config.teacher_weights)
        return LiveTeacher(network.to(DTYPES[config.dtype]), [], device, config.amp)
    if not source.caches:
        return None
    per_view = CachedTeacher.bytes_per_view(source.caches, {})
    views = source.views or 1
    room = memory_budget(device)
    hold = resident and per_view <= room
    keep = max(1, min(views, room // max(per_view, 1)))
    return CachedTeacher(source.caches, {}, device, hold=hold, keep_views=keep)


def result_json(trained: Trained) -> str:
    """One object for scripts."""
    return json.dumps(
        {
            "run": str(trained.folder),
            "test_top1": trained.test.top1 if trained.test else None,
            "seconds": trained.seconds,
            "teacher_s": trained.teacher_s,
        }
    )
