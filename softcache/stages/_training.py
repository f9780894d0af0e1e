"""All that a training needs: opened and checked before anything is written."""

from __future__ import annotations

import dataclasses
import logging
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from softcache.cache.schema import LOGITS, hint_column, share_of
from softcache.config.data import TrainingData
from softcache.config.fit import Fitting
from softcache.config.parsed import Parsed
from softcache.config.record import Record
from softcache.config.teachers import open_teacher
from softcache.config.train import TrainConfig
from softcache.datasets._labels import label_width, labelled
from softcache.dumping.identity import default_batch
from softcache.errors import UsageError
from softcache.fields import Inputs
from softcache.losses._schedule import Schedule
from softcache.losses._terms import Term, refuse_few_classes, refuse_kind, refuse_labels_of_places, refuse_shapes
from softcache.models._arithmetic import Arithmetic, pick_arithmetic
from softcache.models._network import Network
from softcache.models._open import open_network
from softcache.models._takes import refuse_other_inputs
from softcache.ragged import own_places
from softcache.stages._material import Material
from softcache.tracking._specs import check_trackers
from softcache.training.hint_losses import HintLosses, build_hint_losses
from softcache.training.initialize import initialize_student, keep_frozen_still
from softcache.training.loss_modules import LossModules, build_loss_modules
from softcache.training.ranks import ALONE, Ranks
from softcache.training.rows import TrainingRows, choose_rows
from softcache.training.scores import LEADING

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """All that is opened and checked before anything is written. ``material``: what it has in common with other
    students of its cohort, ``data`` what this one reads of it. ``logits``: whether the student's logits are read, so
    that they can be compared with labels; else it learns other outputs alone."""

    parsed: Parsed
    material: Material
    data: TrainingData
    rows: TrainingRows
    network: Network
    hint_losses: HintLosses | None
    loss_modules: LossModules | None
    start: dict[str, Any]
    fitting: Fitting
    live: Arithmetic | None
    logits: bool

    @property
    def leading(self) -> str:
        """The number that the best epoch is chosen by: of the labels' kind or, without them, nearness to the teacher's
        output."""
        if self.logits:
            return LEADING[self.data.viewed.samples.label_kind]
        return "cosine" if math.prod(self.data.output_shape(self.parsed.outputs[0])) > 1 else "r2"


def prepare(
    parsed: Parsed,
    begun: dict[str, Any] | None = None,
    record: Record[TrainConfig] | None = None,
    material: Material | None = None,
    ranks: Ranks = ALONE,
) -> Prepared:
    """``begun``: how a resumed run's student started, where that is behind it; ``record``: that of the resumed run.
    ``material``: what was opened for its cohort, by default for it alone. ``ranks``: which train it together."""
    if ranks.first:
        check_trackers(parsed.options.log)
    material = material or Material.of([parsed], record.view_numbers if record is not None else None, ranks)
    data, device = material.data.narrowed(parsed.outputs, parsed.teacher_layers), material.device
    options = parsed.options
    parsed = parsed.for_data(data.kind_of(LOGITS) or "classes", data.classes())
    if LOGITS in parsed.outputs and data.ragged(LOGITS):
        parsed = _without_labels(parsed, data, options.beta)
    options, samples = parsed.options, data.viewed.samples
    _refuse_kinds(parsed, data)
    logits = _reads_logits(parsed, data)
    classes = data.classes() if logits else (data.output_shape(parsed.outputs[0]) or (1,))[-1]
    if data.views is not None and options.views_per_image > len(data.views):
        raise UsageError(f"--views-per-image {options.views_per_image}: there are {len(data.views)} recorded views")
    if logits and options.test:
        _ = material.test  # opened, or found missing, before anything that takes long
    rows = choose_rows(
        samples.labels,
        val_fraction=options.val_fraction,
        label_fraction=options.label_fraction,
        seed=options.ordered_by,
        labels_alone=parsed.labels_alone,
        needing_labels=[term.name for term in parsed.losses if "labels" in term.needs],
        choosing_by_labels=logits,
    )
    network = open_network(
        options.student,
        classes=classes,
        class_names=samples.classes if logits else None,
        statistics=samples.statistics,
        weights=options.weights,
        normalize=options.normalize,
        size=options.student_size,
        seed=options.seed,
        pictures=samples.pictures,
        new_classifier=options.weights is not None,
    )
    network.refuse_untrainable()
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
    sampled = np.arange(2) % len(data.viewed)
    hint_losses, sample = None, data.viewed.clean(sampled)
    if parsed.hints:
        hint_losses = build_hint_losses(
            network,
            parsed.hints,
            sample,
            data.hint_shapes,
            rows.train,
            rows.visible,
            classes=classes,
            seed=options.seed,
            teacher=teacher,
            places=data.places([hint_column(layer) for layer in parsed.teacher_layers]),
            sampled=sampled.tolist(),
        )
    _refuse_other_shapes(parsed, data, network, sample, sampled, logits=logits)
    widths = [(data.output_shape(term.of) or (1,))[-1] for term in parsed.losses]
    loss_modules = build_loss_modules(parsed.losses, widths, seed=options.seed)
    if data.strong is not None and not material.ranks.alone:
        raise UsageError("--strong-cache has both views of a row in one process: leave out torchrun")
    if loss_modules is not None and not material.ranks.alone:
        names = ", ".join(term.name for number, term in enumerate(parsed.losses) if loss_modules.of(number))
        raise UsageError(f"loss {names} has parameters of its own and trains in one process: leave out torchrun")
    if options.sync_bn:
        _synchronize_batch_norms(network, hint_losses, device, material.ranks)
    keep_frozen_still(network)
    refuse_other_inputs(
        network.to(device), sample.to(device), data.viewed.inputs, data.dataset, "--dataset, or a --cache of it",
        tf32=options.tf32,
    )  # fmt: skip
    live = _live_arithmetic(data, options, device, record)
    pretrained = options.weights is not None or parsed.copied is not None
    options = options.settled(network, rows.length, pretrained=pretrained, distilled=not parsed.labels_alone)
    options.warn_of(network, rows.length, pretrained=pretrained)
    options = options.with_arithmetic(network, sample, device)
    parsed = dataclasses.replace(parsed, options=options)
    _ = material.trained_inputs  # refuses --resident where it can't be
    fitting = options.fitting()
    return Prepared(parsed, material, data, rows, network, hint_losses, loss_modules, start, fitting, live, logits)


def _synchronize_batch_norms(
    network: Network, hint_losses: HintLosses | None, device: torch.device, ranks: Ranks
) -> None:
    """Statistics of batch norms over all ranks. Errors: ``UsageError`` where torch can't have them."""
    if device.type != "cuda" or ranks.alone:
        where = "without torchrun" if ranks.alone else f"on {device}"
        raise UsageError(f"--sync-bn {where}: it is for several GPUs under torchrun: leave it out")
    for term in hint_losses.terms if hint_losses is not None else ():
        if share_of(hint_column(term.teacher[0])) is not None:  # a rank without such rows would keep the others waiting
            raise UsageError(
                f"--sync-bn needs samples on every rank in each step, and hint loss {str(term)!r} has those of a share "
                "of the rows: leave one of them out"
            )
    network.model = nn.SyncBatchNorm.convert_sync_batchnorm(network.model)
    if hint_losses is not None:
        nn.SyncBatchNorm.convert_sync_batchnorm(hint_losses)


def _refuse_kinds(parsed: Parsed, data: TrainingData) -> None:
    """Errors: ``UsageError`` for losses that don't take their outputs or the labels, and for too few classes."""
    samples = data.viewed.samples
    for term in parsed.losses:
        kind = data.kind_of(term.of)
        if kind is not None:
            owner = str(data.outputs[term.of][0].folder) if term.of in data.outputs else "the live teacher"
            refuse_kind(term, kind, owner)
        _tell_of_leaders(term, data)
        refuse_labels_of_places(term, data.output_shape(term.of), ragged=data.ragged(term.of))
    has_labels = bool(labelled(samples.labels).any())
    needing = [(term.name, term.needs) for term in parsed.losses] + [(term.name, term.needs) for term in parsed.hints]
    for name, needs in needing:
        if needs & {"labels", "row labels"} and samples.label_kind != "classes" and has_labels:
            raise UsageError(f"loss {name!r} needs one class a row, and the labels are of kind {samples.label_kind}")
    if LOGITS in parsed.outputs and data.ragged(LOGITS):
        return  # of places, with which labels of rows aren't compared
    kind = data.kind_of(LOGITS) if LOGITS in parsed.outputs else None
    if has_labels and kind not in (None, samples.label_kind):
        raise UsageError(
            f"the teacher's logits are of kind {kind}, the labels of {samples.spec} of kind {samples.label_kind}: "
            "learn that output under another name (softcache dump --output NAME, softcache train --loss …:of=NAME)"
        )
    if samples.label_kind == "classes":
        refuse_few_classes(
            [term for term in parsed.losses if term.of == LOGITS], data.classes(), labels_alone=parsed.labels_alone
        )
    elif has_labels and label_width(samples.labels) != data.classes():
        raise UsageError(
            f"the labels of {samples.spec} are of {label_width(samples.labels)} outputs, the logits of the cache of "
            f"{data.classes()}: name the right --dataset or --cache"
        )


def _tell_of_leaders(term: Term, data: TrainingData) -> None:
    """Warns where a loss looks at more of the teacher than the probabilities at its T, of which a cache keeps the
    largest."""
    caches = data.outputs.get(term.of, ())
    for cache in caches:
        if cache.layout(term.of).keeps_leaders and not term.through_softmax:
            log.warning(
                f"loss {str(term)!r} looks at each of the teacher's {term.of}, or at several temperatures, and "
                f"{cache.where} keeps the largest and what the others weigh together: to this loss all others are "
                "equal; kl and other losses of probabilities lose less"
            )


def _without_labels(parsed: Parsed, data: TrainingData, beta: float | str | None) -> Parsed:
    """Of a training on logits of which each row has several, so that labels, which are of rows, can't be learnt.

    Errors: ``UsageError`` where they are asked for. ``beta``: as it was given.
    """
    if labelled(data.viewed.samples.labels).any():
        if beta is not None and Schedule.parse(str(beta)).bounds()[1]:
            raise UsageError(
                f"--beta {beta}: labels are of rows, and the teacher's logits of the places of a row: leave --beta out"
            )
        log.info("labels are not learnt: they are of rows, and the teacher's logits of the places of a row")
    return dataclasses.replace(parsed, beta=Schedule.constant(0), options=dataclasses.replace(parsed.options, beta="0"))


def _reads_logits(parsed: Parsed, data: TrainingData) -> bool:
    """Whether the student's logits are compared with labels: where they are learnt, from labels or from a teacher, and
    are one vector a row."""
    if LOGITS in parsed.outputs and data.ragged(LOGITS):
        return False
    if not parsed.outputs or LOGITS in parsed.outputs:
        return True
    beta = parsed.beta.bounds()[1] if parsed.beta is not None else 1 - parsed.alpha.bounds()[0]
    return beta > 0 and bool(labelled(data.viewed.samples.labels).any())


@torch.no_grad()
def _refuse_other_shapes(
    parsed: Parsed, data: TrainingData, network: Network, inputs: Inputs, rows: np.ndarray, *, logits: bool
) -> None:
    """Errors: ``UsageError`` with both shapes where an output of the student can't be compared with the teacher's.
    ``inputs``: of ``rows``. ``logits``: whether the student's are learnt, so that it is judged by labels."""
    if logits and not set(parsed.outputs) - {LOGITS}:
        return  # logits are compared with the number of classes when they are made
    was_training = network.training
    found = network.eval().outputs(inputs, parsed.outputs)
    network.train(was_training)
    for name, places in data.places(parsed.outputs).items():
        found[name] = own_places(found[name], places[rows], f"the student's output {name!r}")
    for term in parsed.losses:
        refuse_shapes(term, found[term.of].shape[1:], data.output_shape(term.of))
    leading = parsed.outputs[0]
    ours, theirs = tuple(found[leading].shape[1:]), tuple(data.output_shape(leading))
    if parsed.options.val_fraction and not logits and ours != theirs:
        raise UsageError(
            f"--val-fraction compares the student's {leading!r} with the teacher's on rows that are held out, and they "
            f"have different shapes, {ours} and {theirs}: leave it out"
        )


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
