"""From students that are prepared to their runs: the plan and the stream that they share, and a learner for each."""

from __future__ import annotations

import dataclasses
import functools
import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from softcache.cache.agreement.samples import refuse_pixels
from softcache.cache.schema import hint_column, is_hint, layer_of
from softcache.config.given import remember_folder
from softcache.config.record import STUDENT_FILE, Record, absolute_paths
from softcache.config.train import TrainConfig
from softcache.console import advising, counted, size
from softcache.datasets._index import describe_data
from softcache.errors import PixelsError, UsageError
from softcache.inputs import bucket_input
from softcache.models._folder import describe, save_network, save_tensors
from softcache.models._open import pure
from softcache.models._weights import fit as load_parameters
from softcache.models._weights import load_state
from softcache.ragged import Int64
from softcache.stages._training import Prepared
from softcache.stream.batches import Stream
from softcache.stream.inputs import ResidentInputs
from softcache.stream.memory import available_memory
from softcache.stream.plan import FreshShare, Plan
from softcache.stream.windows import Windows, pick_windows
from softcache.tracking._log import RunLog
from softcache.training.evaluation import Evaluate
from softcache.training.hint_losses import REGRESSORS_FILE
from softcache.training.learner import BEST_FILE, Learner, Leaves
from softcache.training.loop import fit
from softcache.training.objective import Objective
from softcache.training.rows import without_held
from softcache.training.scores import Scores, recorded_numbers
from softcache.training.stage import Fitted, Settings, Stage
from softcache.views._open import Viewed

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
        return {"run": str(self.folder), **self.numbers()}

    def numbers(self) -> dict[str, Any]:
        """Scores and seconds by name; None for what there isn't."""
        return {
            **{f"test_{name}": value for name, value in recorded_numbers(self.test, self.leading).items()},
            f"val_{self.leading}": self.val,
            "best_epoch": self.best_epoch,
            "seconds": self.seconds,
            "teacher_s": self.teacher_s,
        }


@dataclass(frozen=True)
class Order:
    """Which keys come when. ``why``: a sentence on how rows are shuffled."""

    plan: Plan
    why: str


def order_of(prepared: Prepared) -> Order:
    """That of a student as if it were alone; students that have the same can share a stream."""
    parsed, data, rows, options = prepared.parsed, prepared.data, prepared.rows, prepared.parsed.options
    ranks = prepared.material.ranks
    # What the first rank has free decides for all.
    free = int(ranks.of_first(str(available_memory())))
    windows, why = pick_windows(
        data.columns(), options.shuffle, free, per_image=options.views_per_image, room=data.room(options.local_size)
    )
    plan = Plan(
        rows.train,
        prepared.fitting.batch_size,
        options.ordered_by,
        data.views,
        length=rows.length,
        windows=windows,
        per_image=options.views_per_image if data.strong is None else 2,
        fits=without_held(data.viewed, rows.held),
        fresh=FreshShare(parsed.fresh_share, prepared.fitting.epochs) if parsed.fresh_share is not None else None,
        lengths=_lengths(data.viewed, windows) if options.bucket else None,
        paired=data.strong is not None,
        share=(ranks.index, ranks.count),
    )
    return Order(plan, why)


def run_all(
    students: Sequence[Prepared],
    folders: Sequence[Path],
    order: Order,
    *,
    resume: bool,
    leaves: Leaves | None = None,
    logs: Sequence[RunLog] = (),
) -> list[Fitted]:
    """Trains students that have one ``order`` from one stream, each into its folder, which the caller holds.
    ``leaves``: whether one ends early, see ``Learner``. ``logs``: what each one's trackers are told by.

    Where there are several, one that fails leaves, see ``fit``.
    """
    first, several = students[0], len(students) > 1
    learners = []
    for number, (prepared, folder) in enumerate(zip(students, folders, strict=True)):
        if prepared.material.ranks.first:
            record = record_of(prepared)
            record.save(folder)
            remember_folder(folder, record.options, prepared.network.spec)
        told = logs[number] if logs else None
        learners.append(_learner(prepared, folder, title=str(folder) if several else "", leaves=leaves, told=told))
        log.info(_announcement(prepared, order.plan))
    go_on = f"go on with `softcache train --resume {shlex.quote(str(folders[0]))}`"
    device, steps, data = first.material.device, order.plan.steps, first.material.data
    try:
        with advising(lambda: "run the same command again to go on" if several else go_on):
            streams = functools.partial(_stream, first, order)
            return fit(learners, streams, steps=steps, device=device, resume=resume)
    except PixelsError as error:
        refuse_pixels(error, data.all_caches, data.viewed, close=first.parsed.options.pixels == "close")


def finish(prepared: Prepared, folder: Path, fitted: Fitted) -> Trained:
    """Saves the student, of the best epoch where held-out rows chose one, and looks at the test split where it may."""
    network, best, ranks = prepared.network, fitted.best(), prepared.material.ranks
    if best is not None:
        if ranks.first:
            # A finished run that is resumed has no file of the best any more: it is the student's.
            kept = folder / (BEST_FILE if (folder / BEST_FILE).exists() else STUDENT_FILE)
            load_parameters(network.model, load_state(kept), owner=str(kept))
        ranks.as_first(list(network.model.state_dict().values()))
    if ranks.first:
        save_network(network, folder, STUDENT_FILE)
        if prepared.hint_losses is not None:
            save_tensors(prepared.hint_losses.state_dict(), folder, REGRESSORS_FILE)
    # With held-out rows this is the one time that the test split is looked at.
    test = fitted.test
    if test is None:
        (test,) = _evaluate(prepared)([(network, prepared.fitting.arithmetic.amp)])
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
    if not ranks.first:
        return trained
    student = size((folder / STUDENT_FILE).stat().st_size)
    dataclasses.replace(record_of(prepared), result={**trained.numbers(), "student": student}).save(folder)
    (folder / BEST_FILE).unlink(missing_ok=True)
    return trained


def record_of(prepared: Prepared) -> Record[TrainConfig]:
    """Enough to do the run again, and to resume it from anywhere."""
    parsed, data = prepared.parsed, prepared.data
    # The size is written down, so that a run is evaluated on pixels like those that it was trained on.
    options = dataclasses.replace(
        parsed.options,
        dataset=data.dataset,
        size=data.viewed.size if data.viewed.samples.pictures else None,
        view_seed=data.viewed.seed,
        cache=tuple(cache.place for cache in data.named),
        hint_cache=tuple(cache.place for cache in data.lent),
        strong_cache=data.strong.cache.place if data.strong is not None else None,
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
        caches=[{"path": cache.place, "cache_id": cache.manifest.cache_id} for cache in data.every_cache],
        teachers=[] if parsed.labels_alone else data.teachers,
        view_numbers=data.recorded_views,
        held_out_rows=len(prepared.rows.held),
        live=None if prepared.live is None else dataclasses.asdict(prepared.live),
    )


def _stream(prepared: Prepared, order: Order, columns: frozenset[str]) -> Stream:
    """That of the student and all that have its order, with these columns of the teacher."""
    material, options = prepared.material, prepared.parsed.options
    data, inputs = material.data, material.inputs
    targets = data.targets(
        material.device,
        outputs=sorted(name for name in columns if not is_hint(name)),
        layers=sorted(layer_of(name) for name in columns if is_hint(name)),
        arithmetic=prepared.live,
        views_per_image=options.views_per_image,
        resident=isinstance(inputs, ResidentInputs) and inputs.on_device,
        hold_all=options.resident == "device",
        windows=order.plan.windows,
    )
    stream = Stream(
        data.viewed,
        material.trained_inputs,
        order.plan,
        material.device,
        visible=prepared.rows.visible,
        teacher=targets,
        close=data.close,
        places=data.places(sorted(columns)),
        epochs=prepared.fitting.epochs,
    )
    if data.columns():
        log.info(f"targets {stream.targets}; {order.why}")
    return stream


def _learner(prepared: Prepared, folder: Path, title: str, leaves: Leaves | None, told: RunLog | None) -> Learner:
    options, fitting = prepared.parsed.options, prepared.fitting
    settings = Settings(
        fitting.optimization,
        fitting.arithmetic,
        options.seed,
        compiled=options.compile,
        cuda_graphs=options.records(_pure(prepared), prepared.material.device),
        profile=options.profile,
        log_every=options.log_every,
        leading=prepared.leading,
    )
    return Learner(
        prepared.network,
        _stages(prepared),
        settings,
        prepared.material.device,
        folder,
        _evaluate(prepared),
        validate=_validator(prepared),
        title=title,
        ranks=prepared.material.ranks,
        leaves=leaves,
        told=told,
    )


def _pure(prepared: Prepared) -> bool:
    """Whether neither the network nor a loss is code that may do something on the host in each step."""
    names = [term.name for term in prepared.parsed.losses] + [term.name for term in prepared.parsed.hints]
    return pure(prepared.network.spec) and not any(".py" in name for name in names)


def _stages(prepared: Prepared) -> list[Stage]:
    """One stage, or with ``--hint-epochs`` one on the hints alone before it."""
    parsed, data, fitting = prepared.parsed, prepared.data, prepared.fitting
    hint_epochs = parsed.options.hint_epochs

    def objective(epochs: int, *, hints: bool) -> Objective:
        return parsed.objective(
            epochs,
            hints=hints,
            label_smoothing=fitting.label_smoothing,
            binary=[name for name in parsed.outputs if data.kind_of(name) == "binary"],
            labels=prepared.logits,
            modules=prepared.loss_modules,
        )

    hinted = frozenset(map(hint_column, parsed.teacher_layers))
    joint = bool(parsed.hints) and not hint_epochs
    last = Stage(
        objective(fitting.epochs, hints=joint),
        fitting.epochs,
        prepared.hint_losses if joint else None,
        columns=frozenset(parsed.outputs) | (hinted if joint else frozenset()),
    )
    if not hint_epochs:
        return [last]
    first = objective(hint_epochs, hints=True)
    return [Stage(first, hint_epochs, prepared.hint_losses, hints_alone=True, columns=hinted), last]


def _evaluate(prepared: Prepared) -> Evaluate:
    return prepared.material.evaluate(logits=prepared.logits and prepared.parsed.options.test)


def _validator(prepared: Prepared) -> Evaluate | None:
    """None where there is nothing to compare with."""
    if not len(prepared.rows.held):
        if not prepared.logits:
            log.warning(
                "the student learns no logits, so there is nothing to compare with labels: --val-fraction 0.1 holds "
                "out rows and compares its outputs with the teacher's there"
            )
        return None
    output = None if prepared.logits else prepared.parsed.outputs[0]
    return prepared.material.validate(prepared.rows, output, prepared.parsed.options.teacher_weight)


def _lengths(viewed: Viewed, windows: Windows | None) -> Int64:
    """By which rows of like length share a batch.

    Errors: ``UsageError`` where rows have no lengths of their own, and where they are shuffled in blocks.
    """
    by = bucket_input(viewed.inputs, viewed.samples.spec)
    if windows is not None:
        raise UsageError(
            "--bucket sorts rows over many batches, which a shuffle in blocks can't: pass --shuffle full too, which "
            "waits for the disk where the cache is larger than memory, or leave it out"
        )
    return viewed.lengths()[by]


def _announcement(prepared: Prepared, plan: Plan) -> str:
    parsed, data, material = prepared.parsed, prepared.data, prepared.material
    options = parsed.options
    assert options.epochs is not None  # the preset's, where nobody said
    folders = ", ".join(cache.where for cache in data.all_caches)
    targets = "labels alone" if parsed.labels_alone else "live teacher" if options.online else f"cache {folders}"
    if data.strong is not None:
        targets += f" and {data.strong.cache.where} of strong views ({data.strong.viewed.recipe})"
    if options.targets == "mean":
        targets = f"mean over the views of {targets}"
    views = "fresh views" if data.views is None else counted(len(data.views), "view")
    if parsed.fresh_share is not None:
        views += f" and fresh ones (share {parsed.fresh_share}) with the mean over these"
    first = f"{counted(options.hint_epochs, 'epoch')} on hints, then " if options.hint_epochs else ""
    return (
        f"train {options.student} on {data.dataset}: {plan.keys:,} keys an epoch, {views}, {targets}, "
        f"stream {material.trained_inputs.name}, {first}{counted(options.epochs, 'epoch')} on {material.device}"
    )
