"""How good a network is on clean inputs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from softcache.cache.column_reader import ColumnReader
from softcache.datasets._labels import Labels, label_kind, labelled
from softcache.errors import SoftcacheError
from softcache.evaluating.predictions import Judged, predict
from softcache.ragged import own_places
from softcache.stream.inputs import InputSource, ResidentInputs, pick_inputs
from softcache.training.ranks import ALONE, Ranks
from softcache.training.scores import (
    Accuracy,
    Scores,
    class_counts,
    multilabel_scores,
    regression_scores,
)
from softcache.views._open import Viewed, open_viewed, view_samples

log = logging.getLogger(__name__)


# Scores of each of several networks on the same inputs, which are made once; None where there is nothing to compare.
# With several ranks all of them call it, and all get the same.
Evaluate = Callable[[Sequence[Judged]], list[Scores | None]]


def evaluate_networks(
    judged: Sequence[Judged],
    inputs: InputSource,
    labels: Labels,
    device: torch.device,
    *,
    rows: np.ndarray | None = None,
    ranks: Ranks = ALONE,
) -> list[Scores]:
    """Scores of each network's logits on the labelled rows (of ``rows``, by default all), by the kind of the labels.

    ``ranks``: which have a share of the rows each, and all get the scores of all.
    """
    chosen = np.arange(len(labels)) if rows is None else rows
    chosen = chosen[labelled(labels)[chosen]]
    kind = label_kind(labels)
    if kind == "classes":
        return list(_accuracies(judged, inputs, labels, chosen, device, ranks))
    said: list[list[torch.Tensor]] = [[torch.empty(0, labels[:1].size)] for _ in judged]
    for _, logits in predict(judged, inputs, ranks.mine(chosen), device):
        for own, values in zip(said, logits, strict=True):
            own.append(values.cpu())
    wanted = torch.from_numpy(labels[chosen]).view(len(chosen), -1)
    found = [ranks.joined(torch.cat(own)) for own in said]
    return [(multilabel_scores if kind == "binary" else regression_scores)(values, wanted) for values in found]


def _accuracies(
    judged: Sequence[Judged],
    inputs: InputSource,
    labels: Labels,
    rows: np.ndarray,
    device: torch.device,
    ranks: Ranks,
) -> Iterator[Accuracy]:
    where = "cpu" if device.type == "mps" else device
    totals = [torch.zeros(3, dtype=torch.float64, device=where) for _ in judged]
    for done, said in predict(judged, inputs, ranks.mine(rows), device):
        y = torch.from_numpy(labels[done].astype(np.int64)).to(device)
        for number, logits in enumerate(said):
            totals[number] += torch.stack(class_counts(logits, y)).to(where).to(torch.float64)
    for own in totals:
        top1, top5, loss = (ranks.sum(own) / max(len(rows), 1)).tolist()
        yield Accuracy(top1, top5, loss, len(rows))


def output_evaluator(
    viewed: Viewed,
    training: InputSource,
    rows: np.ndarray,
    readers: Sequence[ColumnReader],
    shares: Sequence[float],
    view: int,
    device: torch.device,
    *,
    resident: str,
    workers: int,
    start_method: str,
    ranks: Ranks = ALONE,
) -> Evaluate:
    """How near an output of each network is to the teachers', as ``Regression``, on ``rows`` (M,) int64 in a recorded
    view.

    ``readers``: the column of each teacher, of one name; ``shares``: their weights in the mean, none for equal ones.
    Where rows have lengths of their own, each of their places counts once.
    """
    weights = np.asarray(shares or [1.0] * len(readers)) / (sum(shares) or len(readers))
    kept = [reader.decode(reader.gather(view, rows)) * weight for reader, weight in zip(readers, weights, strict=True)]
    wanted, name, ragged = torch.stack(kept).sum(0), readers[0].name, readers[0].ragged
    inputs = training
    if not isinstance(training, ResidentInputs):
        inputs = pick_inputs(viewed, device, resident=resident, workers=workers, start=start_method)

    def evaluate(judged: Sequence[Judged]) -> list[Scores | None]:
        said: list[list[torch.Tensor]] = [[torch.empty(0, *wanted.shape[1:])] for _ in judged]
        for done, outputs in predict(judged, inputs, ranks.mine(rows), device, output=name, view=view):
            for own, values in zip(said, outputs, strict=True):
                if ragged is not None:
                    values = own_places(values, ragged.places(done), f"the student's output {name!r}")
                own.append(values.cpu())
        flat = wanted.view(len(wanted), -1)
        found = [ranks.joined(torch.cat(own)) for own in said]
        return [regression_scores(values.view(len(wanted), -1), flat) for values in found]

    return evaluate


def held_out_evaluator(
    viewed: Viewed,
    training: InputSource,
    rows: np.ndarray,
    device: torch.device,
    *,
    resident: str,
    workers: int,
    start_method: str,
    ranks: Ranks = ALONE,
) -> Evaluate:
    """``Scores`` of each network on the clean inputs of ``rows`` (M,) int64 of the training's own data, and on no
    others.

    ``training``: where the training's inputs come from. If they are resident, clean inputs are made from the same
    memory; otherwise a source for these rows alone is opened.
    """
    if isinstance(training, ResidentInputs):
        shared, labels = training.clean(), viewed.samples.labels
        return lambda judged: list(evaluate_networks(judged, shared, labels, device, rows=rows, ranks=ranks))
    alone = view_samples(viewed.samples.subset(rows), "none", size=viewed.size)
    own = pick_inputs(alone, device, resident=resident, workers=workers, start=start_method)
    return lambda judged: list(evaluate_networks(judged, own, alone.samples.labels, device, ranks=ranks))


def open_test(dataset: str, size: int, *, data_dir: str | None, download: bool) -> Viewed | None:
    """The clean test split, or None where the dataset has none that can be evaluated on; says so then.

    To be called before anything that takes long. ``size``: side of the views in pixels.
    """
    try:
        test = open_viewed(dataset, "test", data_dir=data_dir, download=download, augment="none", size=size)
    except SoftcacheError as error:
        log.warning(f"no test split to evaluate on, so no accuracy will be given: {error}")
        return None
    if not labelled(test.samples.labels).any():
        log.warning(f"the test split of {dataset} has no labels, so no accuracy will be given")
        return None
    return test


def evaluator(
    test: Viewed | None,
    device: torch.device,
    *,
    resident: str,
    workers: int,
    start_method: str,
    ranks: Ranks = ALONE,
) -> Evaluate:
    """``Scores`` of each network on what ``open_test`` gave, or ``None`` where that is None."""
    if test is None:
        return lambda judged: [None for _ in judged]
    inputs = pick_inputs(test, device, resident=resident, workers=workers, start=start_method)
    labels = test.samples.labels
    return lambda judged: list(evaluate_networks(judged, inputs, labels, device, ranks=ranks))
