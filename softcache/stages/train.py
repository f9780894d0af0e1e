"""Train a student from caches, from a live teacher, or on labels alone: ``softcache train``."""

from __future__ import annotations

import dataclasses
import logging
import shlex
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from softcache.cache.agreement.samples import refuse_pixels
from softcache.config.data import TrainingData
from softcache.config.folders import make_folder, new_run_folder
from softcache.config.given import remember_folder
from softcache.config.options import command
from softcache.config.parsed import Parsed, parse
from softcache.config.record import CONFIG, STUDENT_FILE, Record, absolute_paths
from softcache.config.resume import refuse_other_caches, resumed
from softcache.config.train import TrainConfig
from softcache.console import advising, counted, size
from softcache.datasets._index import describe_data
from softcache.device import reproducible
from softcache.distributed import refuse_several
from softcache.errors import PixelsError, SoftcacheError, UsageError
from softcache.localfiles import local_path
from softcache.models._folder import describe, save_network, save_tensors
from softcache.models._network import Network
from softcache.models._weights import fit as load_parameters
from softcache.models._weights import load_state
from softcache.stages._training import Prepared, prepare, training_stages
from softcache.stream.batches import Stream
from softcache.training.checkpoint import CHECKPOINT
from softcache.training.evaluation import evaluator, held_out_evaluator, output_evaluator
from softcache.training.folder import training_into
from softcache.training.hint_losses import REGRESSORS_FILE
from softcache.training.loop import BEST_FILE, Fitted, fit
from softcache.training.scores import Scores, recorded_numbers

log = logging.getLogger(__name__)


@dataclass
class Trained:
    """The run's folder, the saved student's scores on the test split and on the held-out rows (with the epoch that they
    chose), seconds of training, and of the teacher within them. ``lines``: those of ``metrics.jsonl``. ``leading``: the
    number of the scores that chooses, whose value on the held-out rows is ``val``."""

    folder: Path
    test: Scores | None
    seconds: float
    teacher_s: float
    lines: list[dict[str, Any]] = field(default_factory=list)
    leading: str = "top1"
    val: float | None = None
    best_epoch: int | None = None

    def to_json(self) -> dict[str, Any]:
        """One object for scripts."""
        return {
            "run": str(self.folder),
            **{f"test_{name}": value for name, value in recorded_numbers(self.test, self.leading).items()},
            f"val_{self.leading}": self.val,
            "best_epoch": self.best_epoch,
            "seconds": self.seconds,
            "teacher_s": self.teacher_s,
        }


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
        own, record = resumed(options)
        with reproducible(tf32=own.tf32):
            return _go_on(Path(options.resume), own, record)
    out = local_path(options.out, "--out") if options.out is not None else None
    with reproducible(tf32=options.tf32):
        prepared = prepare(parse(options))
        folder = out or new_run_folder(options.student)
        if (folder / CONFIG).exists():
            raise SoftcacheError(f"{folder} holds a run already: use another --out, or --resume {folder}")
        make_folder(folder)
        with _into(folder):
            return _train(prepared, folder, resume=False)


def _go_on(folder: Path, options: TrainConfig, record: Record[TrainConfig]) -> Trained:
    begun = record.start if (folder / CHECKPOINT).exists() else None
    prepared = prepare(parse(options), begun, record)
    refuse_other_caches(folder, record, prepared.data.every_cache)
    with _into(folder):
        return _train(prepared, folder, resume=True)


def _into(folder: Path) -> AbstractContextManager[None]:
    return training_into(folder, f"softcache train --resume {shlex.quote(str(folder))}")


def _train(prepared: Prepared, folder: Path, *, resume: bool) -> Trained:
    parsed, data, network, device = prepared.parsed, prepared.data, prepared.network, prepared.device
    options, fitting = parsed.options, prepared.fitting
    stages = training_stages(prepared)
    evaluate = evaluator(
        prepared.test,
        device,
        resident=options.resident,
        workers=options.workers,
        start_method=options.start_method,
        amp=options.amp,
    )
    validate = _validator(prepared)
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
                validate=validate,
                seed=options.seed,
                arithmetic=fitting.arithmetic,
                compiled=options.compile,
                profile=options.profile,
                log_every=options.log_every,
                resume=resume,
                leading=prepared.leading,
            )
    except PixelsError as error:
        refuse_pixels(error, data.all_caches, data.viewed, close=options.pixels == "close")
    return _finish(prepared, folder, fitted, record, evaluate)


def _finish(
    prepared: Prepared,
    folder: Path,
    fitted: Fitted,
    record: Record[TrainConfig],
    evaluate: Callable[[Network], Scores | None],
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
        prepared.leading,
        best[f"val_{prepared.leading}"] if best else None,
        best["epoch"] if best else None,
    )
    result = {key: value for key, value in trained.to_json().items() if key != "run"}
    student = size((folder / STUDENT_FILE).stat().st_size)
    dataclasses.replace(record, result={**result, "student": student}).save(folder)
    (folder / BEST_FILE).unlink(missing_ok=True)
    return trained


def _validator(prepared: Prepared) -> Callable[[Network], Scores] | None:
    """Scores on the held-out rows: by their labels on clean pixels or, of a student that learns other outputs than
    logits alone, by the first of these in a recorded view. None where there is nothing to compare with."""
    options, data = prepared.parsed.options, prepared.data
    if not len(prepared.rows.held):
        if not prepared.logits:
            log.warning(
                "the student learns no logits, so there is nothing to compare with labels: --val-fraction 0.1 holds "
                "out rows and compares its outputs with the teacher's there"
            )
        return None
    if not prepared.logits:
        name = prepared.parsed.outputs[0]
        caches, views = data.outputs.get(name), data.recorded_views
        if not caches or not views:
            raise UsageError(
                f"--val-fraction would compare the student's {name!r} with the teacher's, which only a cache holds: "
                "leave it out, or train from a cache"
            )
        return output_evaluator(
            data.viewed,
            prepared.inputs,
            prepared.rows.held,
            [cache.column(name) for cache in caches],
            options.teacher_weight,
            views[0],
            prepared.device,
            resident=options.resident,
            workers=options.workers,
            start_method=options.start_method,
            amp=options.amp,
        )
    return held_out_evaluator(
        prepared.data.viewed,
        prepared.inputs,
        prepared.rows.held,
        prepared.device,
        resident=options.resident,
        workers=options.workers,
        start_method=options.start_method,
        amp=options.amp,
    )


def _record(prepared: Prepared) -> Record[TrainConfig]:
    """Enough to do the run again, and to resume it from anywhere."""
    parsed, data = prepared.parsed, prepared.data
    # The size is written down, so that a run is evaluated on pixels like those that it was trained on.
    options = dataclasses.replace(
        parsed.options,
        dataset=data.dataset,
        size=data.viewed.size if data.viewed.samples.pictures else None,
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
    assert options.epochs is not None  # the preset's, where nobody said
    folders = ", ".join(str(cache.folder) for cache in data.all_caches)
    targets = "labels alone" if parsed.labels_alone else "live teacher" if options.online else f"cache {folders}"
    if options.targets == "mean":
        targets = f"mean over the views of {targets}"
    views = "fresh views" if data.views is None else counted(len(data.views), "view")
    if parsed.fresh_share is not None:
        views += f" and fresh ones (share {parsed.fresh_share}) with the mean over these"
    first = f"{counted(options.hint_epochs, 'epoch')} on hints, then " if options.hint_epochs else ""
    return (
        f"train {options.student} on {data.dataset}: {stream.plan.keys:,} keys an epoch, {views}, {targets}, "
        f"stream {stream.name}, {first}{counted(options.epochs, 'epoch')} on {stream.device}"
    )
