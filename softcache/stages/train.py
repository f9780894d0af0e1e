"""Train a student from caches, from a live teacher, or on labels alone: ``softcache train``."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

import softcache
from softcache.cache.agreement.data import refuse_pixels
from softcache.config.fit import configure
from softcache.config.folders import make_folder, new_run_folder
from softcache.config.record import CONFIG, STUDENT_FILE, read_config, write_config
from softcache.config.sources import TrainingData, open_source
from softcache.config.teachers import open_teacher
from softcache.config.train import TrainConfig, check_options, knob
from softcache.console import size
from softcache.device import pick_device, tf32
from softcache.distributed import refuse_several
from softcache.errors import CacheError, LockedError, PixelsError, SoftcacheError, UsageError
from softcache.models._folder import describe, save_network, save_tensors
from softcache.models._network import Network
from softcache.models._open import open_network
from softcache.models._weights import fit as load_parameters
from softcache.models._weights import load_state
from softcache.stream.batches import Stream
from softcache.stream.inputs import PixelSource, ResidentPixels, pick_pixels
from softcache.stream.memory import available_memory
from softcache.stream.plan import Plan
from softcache.stream.windows import pick_windows
from softcache.training.checkpoint import CHECKPOINT
from softcache.training.evaluation import Accuracy, evaluate_network, evaluator
from softcache.training.hint_losses import REGRESSORS_FILE, HintLosses, build_hint_losses
from softcache.training.initialize import initialize_student, keep_frozen_still
from softcache.training.loop import BEST_FILE, Stage, fit
from softcache.training.objective import Objective
from softcache.training.rows import TrainingRows, choose_rows, without_held
from softcache.views._viewed import ViewedDataset

log = logging.getLogger(__name__)

__all__ = ["TrainConfig", "Trained", "train"]

# What a resumed run may be told anew, because it may go on elsewhere and none of it changes what is trained.
MOVABLE = ("data_dir", "device", "download", "profile", "resident", "start_method", "workers")


@dataclass
class Trained:
    """The run's folder, the saved student's accuracy on the test split and on the held-out rows (with the epoch that
    they chose), seconds of training, and of the teacher within them. ``lines``: those of ``metrics.jsonl``."""

    folder: Path
    test: Accuracy | None
    seconds: float
    teacher_s: float
    lines: list[dict[str, Any]] = field(default_factory=list)
    val_top1: float | None = None
    best_epoch: int | None = None

    def to_json(self) -> dict[str, Any]:
        """One object for scripts."""
        return {
            "run": str(self.folder),
            "test_top1": self.test.top1 if self.test else None,
            "val_top1": self.val_top1,
            "best_epoch": self.best_epoch,
            "seconds": self.seconds,
            "teacher_s": self.teacher_s,
        }


@dataclass(frozen=True)
class _Prepared:
    """All that is opened and checked before anything is written."""

    config: TrainConfig
    device: torch.device
    source: TrainingData
    rows: TrainingRows
    network: Network
    hint_losses: HintLosses | None
    start: dict[str, Any]
    pixels: PixelSource


def train(
    student: str | None = None, *, out: str | Path | None = None, resume: str | Path | None = None, **options: Any
) -> Trained:
    """Trains ``student`` and writes ``config.json``, ``metrics.jsonl`` and ``student.safetensors`` into a run folder.

    ``student``: a model spec, by default resnet18; ``options``: the fields of ``TrainConfig``; ``out``: the folder, by
    default ``runs/STUDENT-<n>``; ``resume``: a run that was interrupted, whose own options are taken: only those that
    don't change what is trained (``MOVABLE``) may be given beside it. Errors: ``UsageError`` for options that can't
    be, ``CacheError`` where the cache doesn't fit the data, ``PixelsError`` where pixels are not those that the
    teacher saw, ``LockedError`` where another process trains into the folder.
    """
    refuse_several("train")
    if student is not None:
        options["student"] = student
    recorded: dict[str, Any] = {}
    if resume is not None:
        _refuse_others(Path(resume), {**options, **({} if out is None else {"out": out})})
        recorded = read_config(Path(resume))
        config = dataclasses.replace(_recorded_config(Path(resume), recorded), **options)
    else:
        config = configure(TrainConfig, options)
    check_options(config)
    begun = resume is not None and (Path(resume) / CHECKPOINT).exists()
    prepared = _prepare(config, recorded.get("start") if begun else None)
    if resume is not None:
        folder = Path(resume)
        _check_resumed(folder, recorded, prepared.source)
    else:
        folder = Path(out) if out is not None else new_run_folder(config.student)
        if (folder / CONFIG).exists():
            raise SoftcacheError(f"{folder} holds a run already: use another --out, or --resume {folder}")
        make_folder(folder)
    try:
        with FileLock(folder / ".lock", timeout=0), tf32(False):
            return _train(prepared, folder, resume is not None)
    except Timeout:
        raise LockedError(f"another process is training into {folder}") from None


def _prepare(config: TrainConfig, begun: dict[str, Any] | None) -> _Prepared:
    """``begun``: how the student of a run started that goes on from a checkpoint."""
    device = pick_device(config.device)
    source = open_source(config)
    if source.views is not None and config.views_per_image > len(source.views):
        raise UsageError(f"--views-per-image {config.views_per_image}: there are {len(source.views)} recorded views")
    samples = source.viewed.samples
    rows = choose_rows(
        samples.labels,
        val_fraction=config.val_fraction,
        label_fraction=config.label_fraction,
        seed=config.seed,
        labels_alone=config.alone,
        needing_labels=[term.name for term in config.terms() if term.needs_labels],
    )
    network = open_network(
        config.student,
        classes=source.classes(),
        statistics=samples.statistics,
        weights=config.weights,
        normalize=config.normalize,
        size=config.student_size,
        seed=config.seed,
    )
    needed = config.needs_teacher()
    teacher = source.live
    if teacher is None and needed is not None and not (begun is not None and needed == "--init teacher"):
        teacher = open_teacher(
            needed, samples, source.all_caches, teacher=config.teacher, weights=config.teacher_weights
        )
    start = initialize_student(
        network,
        seed=config.seed,
        weights=config.weights,
        teacher=teacher if config.copies else None,
        pairs=dict(_pair(text) for text in config.init_map),
        frozen=config.freeze,
        begun=begun,
    )
    hint_losses = None
    if config.hints:
        hint_losses = build_hint_losses(
            network,
            config.hint_terms(),
            source.viewed.clean(np.arange(2) % len(source.viewed)),
            source.hint_shapes,
            rows.train,
            rows.visible,
            classes=source.classes(),
            seed=config.seed,
            teacher=teacher,
        )
    keep_frozen_still(network)
    pixels = pick_pixels(
        source.viewed, device, resident=config.resident, workers=config.workers, start=config.start_method
    )
    return _Prepared(config, device, source, rows, network, hint_losses, start, pixels)


def _train(prepared: _Prepared, folder: Path, resume: bool) -> Trained:
    config, source, rows, network = prepared.config, prepared.source, prepared.rows, prepared.network
    device, pixels = prepared.device, prepared.pixels
    windows, order = pick_windows(
        source.columns(), config.shuffle, available_memory(), per_image=config.views_per_image
    )
    plan = Plan(
        rows.train,
        config.batch_size,
        config.seed,
        source.views,
        length=rows.length,
        windows=windows,
        per_image=config.views_per_image,
        fits=without_held(source.viewed, rows.held),
    )

    def stream(*, logits: bool, hints: bool) -> Stream:
        resident = isinstance(pixels, ResidentPixels) and pixels.on_device
        teacher = source.teacher(config, device, resident=resident, logits=logits, hints=hints, windows=windows)
        exact = config.pixels == "exact"
        return Stream(source.viewed, pixels, plan, device, visible=rows.visible, teacher=teacher, exact=exact)

    joint = bool(config.hints) and not config.hint_epochs
    main, objective = stream(logits=True, hints=joint), _objective(config, joint=joint)
    stages = [Stage(main, objective, config.epochs, prepared.hint_losses if joint else None)]
    if config.hint_epochs:
        hint_objective = _objective(dataclasses.replace(config, epochs=config.hint_epochs), joint=True)
        first = stream(logits=False, hints=True)
        stages.insert(0, Stage(first, hint_objective, config.hint_epochs, prepared.hint_losses, hints_alone=True))
    evaluate = evaluator(
        source.dataset,
        source.viewed.size,
        device,
        data_dir=config.data_dir,
        download=config.download,
        resident=config.resident,
        workers=config.workers,
        start_method=config.start_method,
        amp=config.amp,
    )
    document = _document(prepared, objective)
    write_config(folder, document)
    log.info(_announcement(config, source, plan, main.name, device))
    if source.columns():
        log.info(f"targets {main.targets}; {order}")
    try:
        fitted = fit(
            network,
            stages,
            config.optimization(),
            device,
            folder,
            evaluate,
            validate=_validator(prepared) if len(rows.held) else None,
            seed=config.seed,
            amp=config.amp,
            channels_last=config.channels_last,
            compiled=config.compile,
            profile=config.profile,
            log_every=config.log_every,
            resume=resume,
        )
    except PixelsError as error:
        refuse_pixels(error, source.all_caches, source.viewed)
    best = fitted.best()
    if best is not None:
        # A finished run that is resumed has no file of the best any more: it is the student's.
        kept = folder / (BEST_FILE if (folder / BEST_FILE).exists() else STUDENT_FILE)
        load_parameters(network.model, load_state(kept), owner=str(kept))
    save_network(network, folder, STUDENT_FILE)
    if prepared.hint_losses is not None:
        save_tensors(prepared.hint_losses.state_dict(), folder, REGRESSORS_FILE)
    # With held-out rows this is the one time that the test split is looked at.
    test = fitted.test if fitted.test is not None else evaluate(network)
    trained = Trained(
        folder,
        test,
        fitted.seconds,
        sum(line["teacher_s"] for line in fitted.lines),
        fitted.lines,
        best["val_top1"] if best else None,
        best["epoch"] if best else None,
    )
    result = {key: value for key, value in trained.to_json().items() if key != "run"}
    student = size((folder / STUDENT_FILE).stat().st_size)
    write_config(folder, {**document, "result": {**result, "student": student}})
    (folder / BEST_FILE).unlink(missing_ok=True)
    return trained


def _objective(config: TrainConfig, *, joint: bool) -> Objective:
    return Objective(
        config.terms(),
        knob("alpha", config.alpha),
        knob("beta", config.beta) if config.beta is not None else None,
        knob("T", config.T) if config.T is not None else None,
        config.epochs,
        config.label_smoothing,
        config.hint_terms() if joint else (),
        config.teacher_weight,
        config.combine,
    )


def _validator(prepared: _Prepared) -> Callable[[Network], Accuracy]:
    """Accuracy on the clean pixels of the held-out rows."""
    config, seen, device = prepared.config, prepared.source.viewed, prepared.device
    clean = ViewedDataset(seen.samples, "none", size=seen.size)
    pixels = pick_pixels(clean, device, resident=config.resident, workers=config.workers, start=config.start_method)
    labels, held = seen.samples.labels, prepared.rows.held
    return lambda network: evaluate_network(network, pixels, labels, device, rows=held, amp=config.amp)


def _document(prepared: _Prepared, objective: Objective) -> dict[str, Any]:
    """What a run's ``config.json`` says: enough to do it again, and to resume it from anywhere."""
    config, source = prepared.config, prepared.source
    # The size is written down, so that a run is evaluated on pixels like those that it was trained on.
    asked = {**config.to_json(), "dataset": source.dataset, "size": source.viewed.size, "view_seed": source.viewed.seed}
    for key, caches in (("cache", source.named), ("hint_cache", source.lent)):
        asked[key] = [str(cache.folder.resolve()) for cache in caches]
    if source.recorded_views is not None:
        asked["views"] = len(source.recorded_views)
    return {
        "train": asked,
        "model": {**describe(prepared.network), "weights": STUDENT_FILE},
        "start": prepared.start,
        "losses": [
            {"loss": str(term), "weight": str(term.weight_schedule()), "T": str(term.T_schedule(objective.T))}
            for term in objective.terms
        ],
        "hints": [{"hint": str(term), "weight": str(term.weight_schedule())} for term in config.hint_terms()],
        "caches": [
            {"path": str(cache.folder.resolve()), "cache_id": cache.manifest.cache_id} for cache in source.all_caches
        ],
        "view_numbers": source.recorded_views,
        "held_out_rows": len(prepared.rows.held),
        "softcache": softcache.__version__,
        "torch": str(torch.__version__),
    }


def _pair(text: str) -> tuple[str, str]:
    student, _, teacher = text.partition("=")
    return student.strip(), teacher.strip()


def _refuse_others(folder: Path, options: dict[str, Any]) -> None:
    """Errors: ``UsageError`` that names the options that can't be given to a run that goes on."""
    others = [f"--{name.replace('_', '-')}" for name in sorted(options) if name not in MOVABLE]
    if others:
        raise UsageError(f"--resume {folder} goes on with that run's own options: leave out {', '.join(others)}")


def _recorded_config(folder: Path, document: dict[str, Any]) -> TrainConfig:
    recorded = document.get("train")
    if not isinstance(recorded, dict):
        raise SoftcacheError(f"{folder} is not a run of softcache train")
    fields = {f.name for f in dataclasses.fields(TrainConfig)}
    options: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in recorded.items() if k in fields}
    return TrainConfig(**options)


def _check_resumed(folder: Path, document: dict[str, Any], source: TrainingData) -> None:
    """Errors: ``CacheError`` where the caches or their views are not those that the run began with."""
    began = {str(entry["path"]): entry["cache_id"] for entry in document.get("caches", [])}
    for cache in source.all_caches:
        if cache.manifest.cache_id not in began.values():
            raise CacheError(f"{cache.folder} is not the cache that {folder} began with: they are {', '.join(began)}")
    views = source.recorded_views
    if document.get("view_numbers", views) != views:
        raise CacheError(f"{folder} began with views {document['view_numbers']}, now there are {views}")


def _announcement(config: TrainConfig, source: TrainingData, plan: Plan, stream: str, device: torch.device) -> str:
    folders = ", ".join(str(cache.folder) for cache in source.all_caches)
    targets = "labels alone" if config.alone else "live teacher" if config.online else f"cache {folders}"
    if config.targets == "mean":
        targets = f"mean over the views of {targets}"
    views = "fresh views" if source.views is None else f"{len(source.views)} views"
    first = f"{config.hint_epochs} epochs on hints, then " if config.hint_epochs else ""
    return (
        f"train {config.student} on {source.dataset}: {plan.keys:,} keys an epoch, {views}, {targets}, "
        f"stream {stream}, {first}{config.epochs} epochs on {device}"
    )
