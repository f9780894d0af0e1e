"""How good a network is on clean inputs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from softcache.cache.reader import ColumnReader
from softcache.cache.schema import LOGITS
from softcache.datasets._labels import Labels, label_kind, labelled
from softcache.device import autocast
from softcache.errors import SoftcacheError
from softcache.models._network import Network
from softcache.ragged import own_places
from softcache.stream.inputs import InputSource, ResidentInputs, pick_inputs
from softcache.stream.parts import in_view
from softcache.training.scores import (
    Accuracy,
    Regression,
    Scores,
    class_counts,
    multilabel_scores,
    regression_scores,
)
from softcache.views._open import Viewed, open_viewed, view_samples

log = logging.getLogger(__name__)


@torch.inference_mode()
def predict(
    network: Network,
    inputs: InputSource,
    rows: np.ndarray,
    device: torch.device,
    *,
    batch: int = 256,
    amp: str = "off",
    output: str = LOGITS,
    view: int = 0,
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Rows (B,) and an output of them in a view, (B, …) float32 on the device, in evaluation mode and in order."""
    was_training = network.training
    network.eval()
    batches = [rows[k : k + batch] for k in range(0, len(rows), batch)]
    try:
        for (part,), _, made in inputs.epoch(in_view(batches, view)):
            with autocast(device, amp):
                yield part.rows, network.outputs(made, [output])[output].float()
    finally:
        network.train(was_training)


def evaluate_network(
    network: Network,
    inputs: InputSource,
    labels: Labels,
    device: torch.device,
    *,
    rows: np.ndarray | None = None,
    amp: str = "off",
    calibration: bool = False,
) -> Scores:
    """Scores of the logits on the labelled rows (of ``rows``, by default all), by the kind of the labels.

    ``calibration``: whether the calibration error of classes is wanted too.
    """
    chosen = np.arange(len(labels)) if rows is None else rows
    chosen = chosen[labelled(labels)[chosen]]
    kind = label_kind(labels)
    if kind == "classes":
        return _accuracy(network, inputs, labels, chosen, device, amp, calibration)
    said = [logits.cpu() for _, logits in predict(network, inputs, chosen, device, amp=amp)]
    found = torch.cat(said) if said else torch.empty(0, labels[:1].size)
    wanted = torch.from_numpy(labels[chosen]).view(len(chosen), -1)
    return multilabel_scores(found, wanted) if kind == "binary" else regression_scores(found, wanted)


def _accuracy(
    network: Network,
    inputs: InputSource,
    labels: Labels,
    rows: np.ndarray,
    device: torch.device,
    amp: str,
    calibration: bool,
) -> Accuracy:
    totals = torch.zeros(3, dtype=torch.float64, device="cpu" if device.type == "mps" else device)
    metric = None
    for done, logits in predict(network, inputs, rows, device, amp=amp):
        y = torch.from_numpy(labels[done].astype(np.int64)).to(device)
        totals += torch.stack(class_counts(logits, y)).to(totals.device).to(totals.dtype)
        if calibration and logits.shape[1] > 1:
            if metric is None:
                from torchmetrics.classification import MulticlassCalibrationError

                metric = MulticlassCalibrationError(num_classes=logits.shape[1], n_bins=15, norm="l1").to(device)
            metric.update(logits.softmax(1), y)
    top1, top5, loss = (totals / max(len(rows), 1)).tolist()
    return Accuracy(top1, top5, loss, len(rows), None if metric is None else metric.compute().item())


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
    amp: str,
) -> Callable[[Network], Regression]:
    """``network → Regression``: how near an output is to the teachers', on ``rows`` (M,) int64 in a recorded view.

    ``readers``: the column of each teacher, of one name; ``shares``: their weights in the mean, none for equal ones.
    Where rows have lengths of their own, each of their places counts once.
    """
    weights = np.asarray(shares or [1.0] * len(readers)) / (sum(shares) or len(readers))
    kept = [reader.decode(reader.gather(view, rows)) * weight for reader, weight in zip(readers, weights, strict=True)]
    wanted, name, ragged = torch.stack(kept).sum(0), readers[0].name, readers[0].ragged
    inputs = training
    if not isinstance(training, ResidentInputs):
        inputs = pick_inputs(viewed, device, resident=resident, workers=workers, start=start_method)

    def evaluate(network: Network) -> Regression:
        said = []
        for done, values in predict(network, inputs, rows, device, amp=amp, output=name, view=view):
            if ragged is not None:
                values = own_places(values, ragged.places(done), f"the student's output {name!r}")
            said.append(values.cpu())
        return regression_scores(torch.cat(said).view(len(wanted), -1), wanted.view(len(wanted), -1))

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
    amp: str,
) -> Callable[[Network], Scores]:
    """``network → Scores`` on the clean inputs of ``rows`` (M,) int64 of the training's own data, and of no others.

    ``training``: where the training's inputs come from. If they are resident, clean inputs are made from the same
    memory; otherwise a source for these rows alone is opened.
    """
    if isinstance(training, ResidentInputs):
        shared, labels = training.clean(), viewed.samples.labels
        return lambda network: evaluate_network(network, shared, labels, device, rows=rows, amp=amp)
    alone = view_samples(viewed.samples.subset(rows), "none", size=viewed.size)
    own = pick_inputs(alone, device, resident=resident, workers=workers, start=start_method)
    return lambda network: evaluate_network(network, own, alone.samples.labels, device, amp=amp)


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
    test: Viewed | None, device: torch.device, *, resident: str, workers: int, start_method: str, amp: str
) -> Callable[[Network], Scores | None]:
    """``network → Scores`` on what ``open_test`` gave, or ``None`` where that is None."""
    if test is None:
        return lambda network: None
    inputs = pick_inputs(test, device, resident=resident, workers=workers, start=start_method)
    labels = test.samples.labels
    return lambda network: evaluate_network(network, inputs, labels, device, amp=amp)
