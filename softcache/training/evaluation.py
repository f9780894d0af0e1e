"""How good a network is on clean pixels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from softcache.device import autocast
from softcache.errors import SoftcacheError
from softcache.models._network import Network
from softcache.stream.inputs import InputSource, ResidentInputs, pick_inputs
from softcache.stream.parts import in_view
from softcache.views._open import Viewed, open_viewed, view_samples

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Accuracy:
    """Shares of labelled rows in 0..1; ``loss`` is the mean cross-entropy; ``samples`` how many rows counted."""

    top1: float
    top5: float
    loss: float
    samples: int


@torch.inference_mode()
def predict(
    network: Network,
    pixels: InputSource,
    rows: np.ndarray,
    device: torch.device,
    *,
    batch: int = 256,
    amp: str = "off",
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Rows (B,) and their logits (B, C) float32 on the device, in evaluation mode and in order."""
    was_training = network.training
    network.eval()
    batches = [rows[k : k + batch] for k in range(0, len(rows), batch)]
    try:
        for (part,), _, images in pixels.epoch(in_view(batches, 0)):
            with autocast(device, amp):
                yield part.rows, network(images).float()
    finally:
        network.train(was_training)


def evaluate_network(
    network: Network,
    pixels: InputSource,
    labels: np.ndarray,
    device: torch.device,
    *,
    rows: np.ndarray | None = None,
    amp: str = "off",
) -> Accuracy:
    """Accuracy on the labelled rows (of ``rows``, by default all). ``labels``: (N,) int32, -1 unlabelled."""
    chosen = np.arange(len(labels)) if rows is None else rows
    chosen = chosen[labels[chosen] >= 0]
    totals = torch.zeros(3, dtype=torch.float64, device="cpu" if device.type == "mps" else device)
    for done, logits in predict(network, pixels, chosen, device, amp=amp):
        y = torch.from_numpy(labels[done].astype(np.int64)).to(device)
        totals += torch.stack(counts(logits, y)).to(totals.device).to(totals.dtype)
    top1, top5, loss = (totals / max(len(chosen), 1)).tolist()
    return Accuracy(top1, top5, loss, len(chosen))


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
) -> Callable[[Network], Accuracy]:
    """``network → Accuracy`` on the clean pixels of ``rows`` (M,) int64 of the training's own data, and of no others.

    ``training``: where the training's pixels come from. If they are resident, clean pixels are made from the same
    memory; otherwise a source for these rows alone is opened.
    """
    if isinstance(training, ResidentInputs):
        shared, labels = training.clean(), viewed.samples.labels
        return lambda network: evaluate_network(network, shared, labels, device, rows=rows, amp=amp)
    alone = view_samples(viewed.samples.subset(rows), "none", size=viewed.size)
    own = pick_inputs(alone, device, resident=resident, workers=workers, start=start_method)
    return lambda network: evaluate_network(network, own, alone.samples.labels, device, amp=amp)


def counts(logits_bc: torch.Tensor, labels_b: torch.Tensor) -> list[torch.Tensor]:
    """Hits at 1, hits at 5, and summed cross-entropy of a batch, as float32 scalars: not every device has float64."""
    best = logits_bc.topk(min(5, logits_bc.shape[1]), dim=1).indices  # (B, 5)
    hit = best == labels_b[:, None]
    loss = F.cross_entropy(logits_bc, labels_b, reduction="sum")
    return [hit[:, 0].sum().float(), hit.any(1).sum().float(), loss.float()]


def open_test(dataset: str, size: int, *, data_dir: str | None, download: bool) -> Viewed | None:
    """The clean test split, or None where the dataset has none that can be evaluated on; says so then.

    To be called before anything that takes long. ``size``: side of the views in pixels.
    """
    try:
        test = open_viewed(dataset, "test", data_dir=data_dir, download=download, augment="none", size=size)
    except SoftcacheError as error:
        log.warning(f"no test split to evaluate on, so no accuracy will be given: {error}")
        return None
    if not (test.samples.labels >= 0).any():
        log.warning(f"the test split of {dataset} has no labels, so no accuracy will be given")
        return None
    return test


def evaluator(
    test: Viewed | None, device: torch.device, *, resident: str, workers: int, start_method: str, amp: str
) -> Callable[[Network], Accuracy | None]:
    """``network → Accuracy`` on what ``open_test`` gave, or ``None`` where that is None."""
    if test is None:
        return lambda network: None
    pixels = pick_inputs(test, device, resident=resident, workers=workers, start=start_method)
    labels = test.samples.labels
    return lambda network: evaluate_network(network, pixels, labels, device, amp=amp)
