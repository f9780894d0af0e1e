"""How good models are, and whether a student says what its teacher says: ``softcache eval``."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from softcache.config.eval import EvalConfig
from softcache.config.options import command
from softcache.datasets._labels import labelled
from softcache.device import pick_device, reproducible
from softcache.distributed import refuse_several
from softcache.errors import DatasetError, SoftcacheError, UsageError
from softcache.evaluating.measures import agreement, binary_agreement, binary_kl, kl, per_class
from softcache.evaluating.predictions import Predictions
from softcache.losses._schedule import Schedule
from softcache.stages._beside import Teacher, Teachers
from softcache.stages._subject import AT_ONCE, Opener, Subject
from softcache.sweeping.evaluation import Evaluated, Evaluation, OfClass, OfTeacher
from softcache.sweeping.folder import COHORTS, ManyFolder, read_cohort
from softcache.sweeping.settings import setting_of, temperature
from softcache.training.scores import Scores, regression_scores, scores_of

log = logging.getLogger(__name__)


@command(EvalConfig)
def evaluate_all(config: EvalConfig) -> Evaluation:
    """Scores of several models on the clean inputs of a split, each beside its teacher, and what they cost.

    Runs that differ in the seed alone are one row, with mean and standard deviation. Scores are by the kind of the
    labels (``training.scores``): of classes top-1, top-5 and the calibration error (shares in 0..1) and the mean
    cross-entropy in nats. Beside the teacher: the share of equal top classes, and the divergence of the student from
    the teacher at T=1 and at the temperature of its training; of values R², cosine and mean squared error.

    Errors: ``ModelError`` where there are no parameters for a model, ``DatasetError`` where the split has no labels and
    no teacher to compare with, ``UsageError`` for a run that learnt no logits; where a cache or teacher was named, also
    what speaks against comparing with it. One that is found by a run's record and can't be had is left out.
    """
    refuse_several("eval")
    device = pick_device(config.device)
    opener = Opener(config, device)
    teachers = Teachers(opener)
    names = [name for model in config.models for name in _runs_in(model)]
    found = []
    with reproducible(tf32=config.tf32):
        teachers.refuse_others(names)
        for first in range(0, len(names), AT_ONCE):
            subjects = [opener.subject(name) for name in names[first : first + AT_ONCE]]
            _refuse_without_labels(subjects, config)
            for subject, said in zip(subjects, opener.say(subjects), strict=True):
                found.append(_evaluated(subject, said, teachers, opener))
    return Evaluation.of(found)


@command(EvalConfig)
def evaluate(config: EvalConfig) -> dict[str, Any]:
    """What ``evaluate_all`` finds of one model, by name: ``top1``, ``top5``, ``loss``, ``ece`` and ``samples`` of
    classes; ``agreement``, ``kl``, ``kl_T`` and ``kl_temperature`` beside the teacher; ``parameters`` and ``flops``;
    and ``teacher`` with the teacher's own numbers.

    Errors: as ``evaluate_all``; ``UsageError`` for several models.
    """
    found = evaluate_all(config).models
    if len(found) != 1:
        raise UsageError(f"evaluate is of one model, found {len(found)}: use evaluate_all")
    return found[0].to_json()


def _runs_in(model: str) -> Iterator[str]:
    """The finished runs of a sweep's or a comparison's folder; any other model is itself.

    Errors: ``SoftcacheError`` where none is finished.
    """
    folder = Path(model)
    if not (folder / COHORTS).is_dir():
        yield model
        return
    many = ManyFolder(folder)
    names = list(dict.fromkeys(name for cohort in many.cohorts() for name, _ in read_cohort(cohort)))
    done = [name for name in names if many.outcome(name).result is not None]
    if not done:
        raise SoftcacheError(f"{folder} has no finished run yet, of {len(names)}")
    if len(done) < len(names):
        log.info(f"{folder}: {len(names) - len(done)} of {len(names)} runs are not finished and left out")
    yield from (str(many.run_folder(name)) for name in done)


def _refuse_without_labels(subjects: Sequence[Subject], config: EvalConfig) -> None:
    for subject in subjects:
        split, options = subject.split, subject.options
        taught = options is not None and bool(options.online or options.cache)
        compared = config.compare and (taught or config.cache is not None or config.teacher is not None)
        if not compared and not labelled(split.viewed.samples.labels).any():
            raise DatasetError(f"{split.dataset}/{config.split} has no labels to compare with")


def _evaluated(subject: Subject, said: Predictions, teachers: Teachers, opener: Opener) -> Evaluated:
    config, split, left_out = opener.asked, subject.split, None
    try:
        teacher = teachers.of(subject)
    except SoftcacheError as error:
        if config.cache is not None or config.teacher is not None:
            raise
        teacher, left_out = None, str(error)
    known = said.labelled()
    scores = scores_of(known.logits, known.labels, opener.device) if len(known.rows) else None
    if scores is None and teacher is None:
        raise DatasetError(f"{split.dataset}/{config.split} has no labels to compare with, nor a teacher: {left_out}")
    options = subject.options
    return Evaluated(
        subject.model,
        split.dataset,
        config.split,
        scores,
        {} if teacher is None else _beside(subject, said, teacher, config.T),
        opener.cost(subject).to_json(),
        None if teacher is None else _of_teacher(teacher, opener),
        tuple(_classes(split.dataset, said, teacher)) if config.per_class else (),
        None if subject.record is None or options is None else setting_of(options.to_json(), subject.record),
        None if options is None else options.seed,
        left_out,
    )


def _of_teacher(teacher: Teacher, opener: Opener) -> OfTeacher:
    known = teacher.said.labelled()
    scores: Scores | None = scores_of(known.logits, known.labels, opener.device) if len(known.rows) else None
    cost = None if teacher.cost is None else teacher.cost.to_json()
    return OfTeacher(teacher.name, teacher.source, scores, cost)


def _beside(subject: Subject, said: Predictions, teacher: Teacher, asked: float | None) -> dict[str, float | None]:
    """The student's outputs beside the teacher's, on all rows."""
    theirs = teacher.said
    if said.logits.shape != theirs.logits.shape:
        raise UsageError(
            f"{subject.model} gives {said.logits.shape[1]} outputs, its teacher {teacher.name} "
            f"{theirs.logits.shape[1]}: they can't be compared"
        )
    if teacher.kind == "values":
        scores = regression_scores(said.logits, theirs.logits)
        return {"teacher_r2": scores.r2, "teacher_cosine": scores.cosine, "teacher_mse": scores.mse}
    agrees, diverges = (agreement, kl) if teacher.kind == "classes" else (binary_agreement, binary_kl)
    found: dict[str, float | None] = {
        "agreement": agrees(said.logits, theirs.logits),
        "kl": diverges(said.at(1.0), theirs.at(1.0), 1.0),
    }
    T = asked if asked is not None else _final_T(subject)
    if T is not None:
        found |= {"kl_T": diverges(said.at(T), theirs.at(T), T), "kl_temperature": T}
    return found


def _final_T(subject: Subject) -> float | None:
    """The temperature that a run ended with; None of a model without one."""
    options = subject.options
    if options is None or subject.record is None or (text := temperature(subject.record)) is None:
        return None
    epochs = options.epochs or 1
    return Schedule.parse(text).at(epochs - 1, epochs)


def _classes(dataset: str, said: Predictions, teacher: Teacher | None) -> Iterator[OfClass]:
    """Errors: ``UsageError`` where labels are no classes."""
    if said.labels.dtype.is_floating_point or said.labels.ndim != 1:
        raise UsageError(f"--per-class is for labels that are one class a row, and those of {dataset} are not")
    if not len(said.labelled().rows):
        raise UsageError(f"--per-class needs labels, and {dataset} has none in this split")
    own = per_class(said.logits, said.labels)
    theirs = None if teacher is None else per_class(teacher.said.logits, said.labels).accuracy
    names = said.class_names or tuple(map(str, range(len(own.count))))
    for place, name in enumerate(names):
        yield OfClass(
            name,
            int(own.count[place]),
            _share(own.accuracy[place].item()),
            None if theirs is None else _share(theirs[place].item()),
        )


def _share(value: float) -> float | None:
    return None if math.isnan(value) else value
