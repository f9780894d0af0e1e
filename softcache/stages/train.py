"""Train a student from caches, from a live teacher, or on labels alone: ``softcache train``."""

from __future__ import annotations

import dataclasses
import logging
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from softcache.cache.agreement.samples import refuse_pixels
from softcache.config.data import TrainingData, open_data
from softcache.config.fit import Fitting
from softcache.config.folders import make_folder, new_run_folder
from softcache.config.given import remember_folder
from softcache.config.options import command
from softcache.config.parsed import Parsed, parse
from softcache.config.record import CONFIG, STUDENT_FILE, Record, absolute_paths
from softcache.config.resume import refuse_other_caches, resumed
from softcache.config.teachers import open_teacher
from softcache.config.train import TrainConfig
from softcache.console import advising, size
from softcache.datasets._index import describe_data
from softcache.device import pick_device, tf32
from softcache.distributed import refuse_several
from softcache.dumping.identity import default_batch
from softcache.errors import PixelsError, SoftcacheError, UsageError
from softcache.localfiles import local_path
from softcache.losses._terms import refuse_few_classes
from softcache.models._arithmetic import Arithmetic, pick_arithmetic
from softcache.models._folder import describe, save_network, save_tensors
from softcache.models._network import Network
from softcache.models._open import open_network
from softcache.models._weights import fit as load_parameters
from softcache.models._weights import load_state
from softcache.stream.batches import Stream
from softcache.stream.inputs import PixelSource, ResidentPixels, pick_pixels
from softcache.stream.memory import available_memory
from softcache.stream.plan import FreshShare, Plan
from softcache.stream.windows import pick_windows
from softcache.training.checkpoint import CHECKPOINT
from softcache.training.evaluation import Accuracy, evaluator, held_out_evaluator, open_test
from softcache.training.folder import training_into
from softcache.training.hint_losses import REGRESSORS_FILE, HintLosses, build_hint_losses
from softcache.training.initialize import initialize_student, keep_frozen_still
from softcache.training.loop import BEST_FILE, Fitted, Stage, fit
from softcache.training.objective import Objective
from softcache.training.rows import TrainingRows, choose_rows, without_held
from softcache.views._viewed import ViewedDataset

log = logging.getLogger(__name__)


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

    parsed: Parsed
    data: TrainingData
    test: ViewedDataset | None
    rows: TrainingRows
    device: torch.device
    network: Network
    hint_losses: HintLosses | None
    start: dict[str, Any]
    pixels: PixelSource
    fitting: Fitting
    live: Arithmetic | None


@command(TrainConfig)
def train(options: TrainConfig) -> Trained:
    """Trains a student and writes ``config.json``, ``metrics.jsonl`` and ``student.safetensors`` into a run's folder.

    With ``resume`` an interrupted run goes on, with its own options: only those that don't change what is trained may
    be given beside it.

    Errors: ``UsageError`` for options that can't be, ``CacheError`` where the cache doesn't fit the data,
    ``PixelsError`` where pixels are not those that the teacher saw, ``LockedError`` where another process trains into
    the folder.
    """
    refuse_several("train")
    if options.resume is not None:
        folder = Path(options.resume)
        own, record = resumed(options)
        begun = record.start if (folder / CHECKPOINT).exists() else None
        prepared = _prepare(parse(own), begun, record)
        refuse_other_caches(folder, record, prepared.data.every_cache)
    else:
        prepared = _prepare(parse(options))
        folder = local_path(options.out, "--out") if options.out is not None else new_run_folder(options.student)
        if (folder / CONFIG).exists():
            raise SoftcacheError(f"{folder} holds a run already: use another --out, or --resume {folder}")
        make_folder(folder)
    with training_into(folder, f"softcache train --resume {shlex.quote(str(folder))}"), tf32(options.tf32):
        return _train(prepared, folder, options.resume is not None)


def _prepare(
    parsed: Parsed, begun: dict[str, Any] | None = None, record: Record[TrainConfig] | None = None
) -> _Prepared:
    """``begun``: how a resumed run's student started, where that is behind it; ``record``: that of the resumed run."""
    options = parsed.options
    device = pick_device(options.device)
    data = open_data(parsed, record.view_numbers if record is not None else None)
    live = _live_arithmetic(data, options, device, record)
    refuse_few_classes(parsed.losses, data.classes(), labels_alone=parsed.labels_alone)
    if data.views is not None and options.views_per_image > len(data.views):
        raise UsageError(f"--views-per-image {options.views_per_image}: there are {len(data.views)} recorded views")
    test = open_test(data.dataset, data.viewed.size, data_dir=options.data_dir, download=options.download)
    samples = data.viewed.samples
    rows = choose_rows(
        samples.labels,
        val_fraction=options.val_fraction,
        label_fraction=options.label_fraction,
        seed=options.seed,
        labels_alone=parsed.labels_alone,
        needing_labels=[term.name for term in parsed.losses if "labels" in term.needs],
    )
    network = open_network(
        options.student,
        classes=data.classes(),
        class_names=samples.classes,
        statistics=samples.statistics,
        weights=options.weights,
        normalize=options.normalize,
        size=options.student_size,
        seed=options.seed,
        new_classifier=options.weights is not None,
    )
    if network.fresh:
        log.info(f"{options.weights} is for other classes: {', '.join(network.fresh)} of the student are new")
    teacher = _teacher(parsed, data, begun is not None)
    start = initialize_student(
        network,
        seed=options.seed,
        weights=options.weights,
        teacher=teacher if parsed.copied is not None else None,
        pairs=parsed.copied or {},
        frozen=options.freeze,
        begun=begun,
    )
    hint_losses, sample = None, data.viewed.clean(np.arange(2) % len(data.viewed))
    if parsed.hints:
        hint_losses = build_hint_losses(
            network,
            parsed.hints,
            sample,
            data.hint_shapes,
            rows.train,
            rows.visible,
            classes=data.classes(),
            seed=options.seed,
            teacher=teacher,
        )
    keep_frozen_still(network)
    pretrained = options.weights is not None or parsed.copied is not None
    options = options.settled(network, len(rows.train), pretrained=pretrained)
    options = options.with_arithmetic(network, sample, device)
    parsed = dataclasses.replace(parsed, options=options)
    pixels = pick_pixels(
        data.viewed, device, resident=options.resident, workers=options.workers, start=options.start_method
    )
    return _Prepared(parsed, data, test, rows, device, network, hint_losses, start, pixels, options.fitting(), live)


def _teacher(parsed: Parsed, data: TrainingData, begun: bool) -> Network | None:
    """The teacher itself, where something needs more of it than a cache holds. ``begun``: whether the student has its
    start behind it, so that there is nothing to copy."""
    if data.live is not None:
        return data.live
    if parsed.needs_teacher is None or (begun and parsed.needs_teacher == "--init teacher"):
        return None
    options, samples = parsed.options, data.viewed.samples
    return open_teacher(
        parsed.needs_teacher, samples, data.every_cache, teacher=options.teacher, weights=options.teacher_weights
    )


def _live_arithmetic(
    data: TrainingData, options: TrainConfig, device: torch.device, record: Record[TrainConfig] | None
) -> Arithmetic | None:
    """That of a live teacher: what a dump of it would choose, or what a resumed run began with."""
    if data.live is None:
        return None
    if record is not None and record.live is not None:
        return Arithmetic(**record.live)
    return pick_arithmetic(
        data.live,
        data.viewed.clean(np.arange(2) % len(data.viewed)),
        default_batch(data.viewed, device.type),
        device,
        amp=options.amp,
        channels_last=options.channels_last,
        dtype=options.dtype,
    )


def _train(prepared: _Prepared, folder: Path, resume: bool) -> Trained:
    parsed, data, network, device = prepared.parsed, prepared.data, prepared.network, prepared.device
    options, fitting = parsed.options, prepared.fitting
    stages = _stages(prepared)
    evaluate = evaluator(
        prepared.test,
        device,
        resident=options.resident,
        workers=options.workers,
        start_method=options.start_method,
        amp=options.amp,
    )
    record = _record(prepared)
    record.save(folder)
    remember_folder(folder, record.options, network.spec)
    log.info(_announcement(parsed, data, stages[-1].stream))
    try:
        with advising(lambda: f"go on with `softcache train --resume {shlex.quote(str(folder))}`"):
            fitted = fit(
                network,
                stages,
                fitting.optimization,
                device,
                folder,
                evaluate,
                validate=_validator(prepared) if len(prepared.rows.held) else None,
                seed=options.seed,
                arithmetic=fitting.arithmetic,
                compiled=options.compile,
                profile=options.profile,
                log_every=options.log_every,
                resume=resume,
            )
    except PixelsError as error:
        refuse_pixels(error, data.all_caches, data.viewed, close=options.pixels == "close")
    return _finish(prepared, folder, fitted, record, evaluate)


def _stages(prepared: _Prepared) -> list[Stage]:
    """One stage, or with ``--hint-epochs`` one on the hints alone before it."""
    parsed, data, rows, pixels = prepared.parsed, prepared.data, prepared.rows, prepared.pixels
    options, fitting = parsed.options, prepared.fitting
    windows, order = pick_windows(
        data.columns(), options.shuffle, available_memory(), per_image=options.views_per_image
    )
    plan = Plan(
        rows.train,
        fitting.batch_size,
        options.seed,
        data.views,
        length=rows.length,
        windows=windows,
        per_image=options.views_per_image,
        fits=without_held(data.viewed, rows.held),
        fresh=FreshShare(parsed.fresh_share, fitting.epochs) if parsed.fresh_share is not None else None,
    )

    def stream(*, logits: bool, hints: bool) -> Stream:
        targets = data.targets(
            prepared.device,
            logits=logits,
            layers=parsed.teacher_layers if hints else (),
            arithmetic=prepared.live,
            views_per_image=options.views_per_image,
            resident=isinstance(pixels, ResidentPixels) and pixels.on_device,
            hold_all=options.resident == "device",
            windows=windows,
        )
        return Stream(
            data.viewed, pixels, plan, prepared.device, visible=rows.visible, teacher=targets, close=data.close
        )

    joint = bool(parsed.hints) and not options.hint_epochs
    main = stream(logits=bool(parsed.losses), hints=joint)
    if data.columns():
        log.info(f"targets {main.targets}; {order}")

    def objective(epochs: int, *, hints: bool) -> Objective:
        return parsed.objective(epochs, hints=hints, label_smoothing=fitting.label_smoothing)

    last = Stage(main, objective(fitting.epochs, hints=joint), fitting.epochs, prepared.hint_losses if joint else None)
    if not options.hint_epochs:
        return [last]
    first = Stage(
        stream(logits=False, hints=True),
        objective(options.hint_epochs, hints=True),
        options.hint_epochs,
        prepared.hint_losses,
        hints_alone=True,
    )
    return [first, last]


def _finish(
    prepared: _Prepared,
    folder: Path,
    fitted: Fitted,
    record: Record[TrainConfig],
    evaluate: Callable[[Network], Accuracy | None],
) -> Trained:
    """Saves the student, of the best epoch where held-out rows chose one, and looks at the test split."""
    network, best = prepared.network, fitted.best()
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
    dataclasses.replace(record, result={**result, "student": student}).save(folder)
    (folder / BEST_FILE).unlink(missing_ok=True)
    return trained


def _validator(prepared: _Prepared) -> Callable[[Network], Accuracy]:
    """Accuracy on the clean pixels of the held-out rows."""
    options = prepared.parsed.options
    return held_out_evaluator(
        prepared.data.viewed,
        prepared.pixels,
        prepared.rows.held,
        prepared.device,
        resident=options.resident,
        workers=options.workers,
        start_method=options.start_method,
        amp=options.amp,
    )


def _record(prepared: _Prepared) -> Record[TrainConfig]:
    """Enough to do the run again, and to resume it from anywhere."""
    parsed, data = prepared.parsed, prepared.data
    # The size is written down, so that a run is evaluated on pixels like those that it was trained on.
    options = dataclasses.replace(
        parsed.options,
        dataset=data.dataset,
        size=data.viewed.size,
        view_seed=data.viewed.seed,
        cache=tuple(str(cache.folder.resolve()) for cache in data.named),
        hint_cache=tuple(str(cache.folder.resolve()) for cache in data.lent),
    )
    return Record(
        "train",
        absolute_paths(options),
        {**describe(prepared.network), "weights": STUDENT_FILE},
        describe_data(data.viewed.samples, data.quick_fingerprint()),
        start=prepared.start,
        losses=[
            {"loss": str(term), "weight": str(term.weight_schedule()), "T": str(term.T_schedule(parsed.T))}
            for term in parsed.losses
        ],
        hints=[{"hint": str(term), "weight": str(term.weight_schedule())} for term in parsed.hints],
        caches=[
            {"path": str(cache.folder.resolve()), "cache_id": cache.manifest.cache_id} for cache in data.every_cache
        ],
        view_numbers=data.recorded_views,
        held_out_rows=len(prepared.rows.held),
        live=None if prepared.live is None else dataclasses.asdict(prepared.live),
    )


def _announcement(parsed: Parsed, data: TrainingData, stream: Stream) -> str:
    options = parsed.options
    folders = ", ".join(str(cache.folder) for cache in data.all_caches)
    targets = "labels alone" if parsed.labels_alone else "live teacher" if options.online else f"cache {folders}"
    if options.targets == "mean":
        targets = f"mean over the views of {targets}"
    views = "fresh views" if data.views is None else f"{len(data.views)} views"
    if parsed.fresh_share is not None:
        views += f" and fresh ones (share {parsed.fresh_share}) with the mean over these"
    first = f"{options.hint_epochs} epochs on hints, then " if options.hint_epochs else ""
    return (
        f"train {options.student} on {data.dataset}: {stream.plan.keys:,} keys an epoch, {views}, {targets}, "
        f"stream {stream.name}, {first}{options.epochs} epochs on {stream.device}"
    )
