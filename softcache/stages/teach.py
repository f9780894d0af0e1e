"""Train a teacher, or fine-tune one from weights: ``softcache teach``."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from softcache.config.folders import make_folder, teacher_folder
from softcache.config.given import remember_folder
from softcache.config.options import command
from softcache.config.record import CONFIG, TEACHER_FILE, Record, absolute_paths, read_record
from softcache.config.teach import TeachConfig
from softcache.console import advising, counted
from softcache.datasets._index import describe_data
from softcache.datasets._labels import labelled
from softcache.device import pick_device, reproducible
from softcache.distributed import refuse_several
from softcache.errors import SoftcacheError, UsageError
from softcache.localfiles import local_path
from softcache.losses._schedule import Schedule
from softcache.losses._terms import refuse_few_classes
from softcache.models._folder import describe, save_network
from softcache.models._network import Network
from softcache.models._open import open_network, pure
from softcache.models._takes import refuse_other_inputs
from softcache.stages._tracked import tracked_run
from softcache.stream.batches import Stream
from softcache.stream.inputs import pick_inputs
from softcache.stream.plan import Plan
from softcache.tracking._log import RunLog, telling
from softcache.tracking._specs import check_trackers
from softcache.training.evaluation import evaluator, open_test
from softcache.training.folder import training_into
from softcache.training.learner import Learner
from softcache.training.loop import fit
from softcache.training.objective import Objective
from softcache.training.scores import LEADING, Scores, recorded_numbers, scores_from
from softcache.training.stage import Settings, Stage
from softcache.views._open import Viewed, open_viewed

log = logging.getLogger(__name__)


# Where or how fast a teacher is trained doesn't make it another one.
UNIMPORTANT = frozenset(
    {"cuda_graphs", "device", "workers", "resident", "start_method", "profile", "data_dir", "download", "log", "out"}
)


@dataclass(frozen=True)
class Taught:
    """The teacher's folder, its accuracy on the test split (if there is one), and whether it was there already."""

    folder: Path
    test: Scores | None
    seconds: float
    kept: bool
    leading: str = "top1"


@command(TeachConfig)
def teach(config: TeachConfig) -> Taught:
    """Trains a model on labels and puts it into ``teachers/MODEL-DATASET/`` (or ``out``).

    The same call again keeps what is there; an interrupted one goes on where it stood. Errors: ``SoftcacheError`` where
    the folder holds a teacher of another configuration, ``LockedError`` where another process trains into it.
    """
    refuse_several("teach")
    folder = local_path(config.out, "--out") if config.out is not None else teacher_folder(config.model, config.dataset)
    config = absolute_paths(config)
    if (folder / CONFIG).exists():
        recorded = read_record(folder)
        if isinstance(recorded.options, TeachConfig):
            config = config.as_recorded(recorded.options)
        _refuse_other(folder, recorded, config)
        if recorded.result is not None and (folder / TEACHER_FILE).exists():
            kept = scores_from(recorded.result["test"]) if recorded.result["test"] else None
            return Taught(folder, kept, 0.0, True, kept.recorded[0] if kept else "top1")
    check_trackers(config.log)
    device = pick_device(config.device)
    train = open_viewed(
        config.dataset,
        "train",
        data_dir=config.data_dir,
        download=config.download,
        augment=config.augment,
        size=config.size,
        view_seed=config.seed,
    )
    if not train.samples.classes:
        raise UsageError(f"{config.dataset} has no labels: a teacher can't be trained on it")
    if train.samples.label_kind == "classes":
        refuse_few_classes((), len(train.samples.classes), labels_alone=True)
    test = open_test(config.dataset, train.size, data_dir=config.data_dir, download=config.download)
    network = open_network(
        config.model,
        classes=len(train.samples.classes),
        class_names=train.samples.classes,
        statistics=train.samples.statistics,
        weights=config.weights,
        normalize=config.normalize,
        seed=config.seed,
        pictures=train.samples.pictures,
        new_classifier=True,
    )
    network.refuse_untrainable()
    some = train.clean(np.arange(2) % len(train))
    refuse_other_inputs(
        network.to(device), some.to(device), train.inputs, config.dataset, "--dataset", tf32=config.tf32
    )
    if config.freeze:
        if config.weights is None:
            raise UsageError("--freeze trains the classifier alone: give the rest of the network with --weights")
        network.freeze_all_but_classifier()
    rows, pretrained = int(labelled(train.samples.labels).sum()), config.weights is not None
    config = config.settled(network, rows, pretrained=pretrained)
    config.warn_of(network, rows, pretrained=pretrained)
    make_folder(folder)
    with training_into(folder, "the same command"), reproducible(tf32=config.tf32):
        config = config.with_arithmetic(network, some, device)
        return _teach(network, train, test, config, folder, device)


def _teach(
    network: Network,
    train: Viewed,
    test: Viewed | None,
    config: TeachConfig,
    folder: Path,
    device: torch.device,
) -> Taught:
    data = describe_data(train.samples)
    record = Record("teach", config, {**describe(network), "weights": TEACHER_FILE}, data)
    resume = (folder / CONFIG).exists()
    if resume:
        _refuse_other_data(folder, read_record(folder).data, data)
    record.save(folder)
    remember_folder(folder, config, network.spec)
    labels, fitting = train.samples.labels, config.fitting()
    plan = Plan(np.flatnonzero(labelled(labels)), fitting.batch_size, config.seed, None)
    pixels = pick_inputs(train, device, resident=config.resident, workers=config.workers, start=config.start_method)
    stream = Stream(train, pixels, plan, device, visible=labels, teacher=None)
    alone = Objective((), Schedule.constant(0), Schedule.constant(1), None, fitting.epochs, fitting.label_smoothing)
    evaluate = evaluator(
        test,
        device,
        resident=config.resident,
        workers=config.workers,
        start_method=config.start_method,
    )
    settings = Settings(
        fitting.optimization,
        fitting.arithmetic,
        config.seed,
        compiled=config.compile,
        cuda_graphs=config.records(pure(network.spec), device),
        profile=config.profile,
        leading=LEADING[train.samples.label_kind],
    )
    told = RunLog.of(config.log, tracked_run(folder, record)) if config.log else RunLog()
    learner = Learner(network, [Stage(alone, fitting.epochs)], settings, device, folder, evaluate, told=told)
    log.info(
        f"teach {config.model} on {config.dataset}: {len(plan.rows):,} rows, {len(train.samples.classes)} classes, "
        f"{'; '.join(map(str, train.inputs.values()))}, recipe {train.recipe}, {counted(fitting.epochs, 'epoch')} on "
        f"{device}"
    )
    with telling([told]):
        with advising(lambda: "run the same command again to go on"):
            (fitted,) = fit([learner], lambda columns: stream, steps=plan.steps, device=device, resume=resume)
        (reached,) = evaluate([(network, fitting.arithmetic.amp)])
        save_network(network, folder, TEACHER_FILE)
        result = {"test": dataclasses.asdict(reached) if reached else None, "seconds": round(fitted.seconds, 3)}
        dataclasses.replace(record, result=result).save(folder)
        scores = {f"test_{name}": value for name, value in recorded_numbers(reached, fitted.leading).items()}
        told.end("finished", {**scores, "seconds": result["seconds"]})
    return Taught(folder, reached, fitted.seconds, False, fitted.leading)


def _refuse_other(folder: Path, found: Record[Any], wanted: TeachConfig) -> None:
    if not isinstance(found.options, TeachConfig):
        raise SoftcacheError(f"{folder} is not a teacher's folder: use another --out")
    theirs, ours = found.options.to_json(), wanted.to_json()
    differing = [name for name in sorted(ours) if name not in UNIMPORTANT and theirs[name] != ours[name]]
    if differing:
        shown = "; ".join(f"{name}: {theirs[name]!r} there, {ours[name]!r} now" for name in differing)
        raise SoftcacheError(f"{folder} is a teacher of another configuration ({shown}): use another --out")


def _refuse_other_data(folder: Path, began: dict[str, Any] | None, now: dict[str, Any]) -> None:
    """A training that goes on must see the data that it began with."""
    differing = [key for key in now if key != "spec" and began is not None and began.get(key) != now[key]]
    if differing:
        raise SoftcacheError(
            f"{folder} was begun on other data than {now['spec']} now has ({', '.join(differing)} differ): "
            "use another --out"
        )
