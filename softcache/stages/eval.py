"""How good a run or a teacher is: ``softcache eval``, and after each epoch of a training."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

from softcache.cache.schema import LOGITS
from softcache.config.fit import FitConfig
from softcache.config.given import recorded_data_dir, remember_data
from softcache.config.parsed import parse
from softcache.config.record import recorded_options
from softcache.config.teachers import default_data, known_folder, teacher_source
from softcache.config.train import TrainConfig
from softcache.datasets._labels import labelled
from softcache.device import pick_device, reproducible
from softcache.errors import DatasetError, UsageError
from softcache.evaluating.predictions import predictions
from softcache.models._arithmetic import Arithmetic
from softcache.models._open import open_network
from softcache.stream.inputs import pick_inputs
from softcache.training.scores import scores_of
from softcache.views._open import open_viewed

log = logging.getLogger(__name__)


def evaluate(
    model: str,
    *,
    weights: str | None = None,
    dataset: str | None = None,
    split: str = "test",
    data_dir: str | None = None,
    download: bool = False,
    size: int | None = None,
    normalize: str | None = None,
    device: str = "auto",
    workers: int = -1,
    amp: str | None = None,
    tf32: bool = False,
) -> dict[str, Any]:
    """Scores on the clean inputs of a split, by the kind of its labels (``training.scores``): of classes top-1, top-5
    and the calibration error (shares in 0..1) and the mean cross-entropy; and how many samples they are of.

    ``model``: a run's or a teacher's folder, which knows its dataset; or a spec, on ``dataset``, with the parameters
    of the teacher that ``teach`` made of it, with ``weights``, or with torchvision's where the classes are ImageNet's.
    ``normalize``: what pixels are normalized with (``choose_statistics``), by default as the parameters were trained.
    ``amp``: ``off``, ``bf16`` or ``fp16``; by default as the run or the teacher was trained, else ``off``. ``tf32``:
    whether a GPU may use TF32.
    Errors: ``ModelError`` where there are no parameters for it, ``DatasetError`` where the split has no labels.
    """
    folder = known_folder(model)
    recorded = recorded_options(folder) if folder is not None else None
    if isinstance(recorded, TrainConfig):
        _refuse_other_outputs(model, recorded)
    if folder is not None:
        data_dir = data_dir or recorded_data_dir(folder)
    dataset, size = default_data(model, dataset, size)
    viewed = open_viewed(dataset, split, data_dir=data_dir, download=download, augment="none", size=size)
    if folder is not None and recorded is not None:
        remember_data(folder, recorded, dataset)
    if not labelled(viewed.samples.labels).any():
        raise DatasetError(f"{dataset}/{split} has no labels to compare with")
    chosen = pick_device(device)
    spec, found = teacher_source(model, viewed.samples, weights, option="--weights")
    network = open_network(
        spec,
        classes=len(viewed.samples.classes),
        class_names=viewed.samples.classes,
        statistics=viewed.samples.statistics,
        weights=found,
        normalize=normalize,
        pictures=viewed.samples.pictures,
    )
    pixels = pick_inputs(viewed, chosen, workers=workers)
    if folder is None and Path(spec).is_dir():  # a teacher that was found by its model's name
        recorded = recorded_options(Path(spec))
    # As it was trained, so that its folder's own figure comes out again.
    trained = recorded.amp if isinstance(recorded, FitConfig) and recorded.amp != "auto" else "off"
    arithmetic = Arithmetic(amp or trained, isinstance(recorded, FitConfig) and bool(recorded.channels_last))
    with reproducible(tf32=tf32):
        network = arithmetic.apply(network.to(chosen))
        (said,) = predictions([(network, arithmetic.amp)], viewed, pixels, chosen)
        known = said.labelled()
        scores = scores_of(known.logits, known.labels, chosen)
    return {"model": model, "dataset": dataset, "split": split, **dataclasses.asdict(scores)}


def _refuse_other_outputs(run: str, options: TrainConfig) -> None:
    """Errors: ``UsageError`` for a run whose student has learnt other outputs than logits, and no labels."""
    parsed = parse(options)
    if parsed.outputs and LOGITS not in parsed.outputs and parsed.beta is not None and parsed.beta.bounds()[1] == 0:
        raise UsageError(
            f"{run} has learnt {', '.join(parsed.outputs)} and no logits that could be compared with labels: its "
            "metrics.jsonl has what --val-fraction found, docs/features.md shows how to use it"
        )
