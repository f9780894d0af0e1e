"""How good outputs are, by the kind of what they are compared with. torchmetrics is imported where it is used."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from softcache.datasets._labels import UNKNOWN, label_kind
from softcache.evaluating.measures import calibration, top_classes
from softcache.evaluating.predictions import BATCH

SHARES = frozenset({"top1", "top5", "map", "f1", "ece", "agreement"})  # told in percent
TITLES = {
    "top1": "top-1",
    "top5": "top-5",
    "ece": "calibration error",
    "loss": "negative log-likelihood",
    "map": "mean average precision",
    "f1": "F1",
    "r2": "R²",
    "cosine": "cosine",
    "mse": "mean squared error",
}


@dataclass(frozen=True)
class Accuracy:
    """Of classes. Shares of labelled rows in 0..1; ``loss``: the mean cross-entropy, which is the negative
    log-likelihood; ``ece``: the expected calibration error over 15 bins, where it was measured; ``samples``: how many
    rows counted."""

    recorded: ClassVar[tuple[str, ...]] = ("top1",)

    top1: float
    top5: float
    loss: float
    samples: int
    ece: float | None = None


@dataclass(frozen=True)
class Multilabel:
    """Of outputs that are yes or no. ``map``: the mean over outputs of the average precision, ``f1``: that of F1 where
    a probability above ½ is a yes; both over the outputs that some row has a yes for. ``loss``: the mean binary
    cross-entropy; ``samples``: rows with any label."""

    recorded: ClassVar[tuple[str, ...]] = ("map", "f1")

    map: float
    f1: float
    loss: float
    samples: int


@dataclass(frozen=True)
class Regression:
    """Of values. ``r2``: the coefficient of determination, averaged over outputs; ``cosine``: between the vectors of a
    row, averaged over rows, None for a single output; ``mse``: the mean squared difference."""

    recorded: ClassVar[tuple[str, ...]] = ("r2", "cosine", "mse")

    r2: float
    cosine: float | None
    mse: float
    samples: int


Scores = Accuracy | Multilabel | Regression
LEADING = {"classes": "top1", "binary": "map", "values": "r2"}  # what chooses the best epoch; the higher the better


def scores_from(recorded: Mapping[str, Any]) -> Scores:
    """Scores as ``dataclasses.asdict`` gave them."""
    for cls in (Accuracy, Multilabel, Regression):
        if set(recorded) <= {field.name for field in dataclasses.fields(cls)}:
            return cls(**recorded)
    raise ValueError(f"no scores have the numbers {', '.join(recorded)}")


def recorded_numbers(scores: Scores | None, leading: str) -> dict[str, float | None]:
    """What is recorded of each epoch, by name; without scores ``leading`` alone, None."""
    return {leading: None} if scores is None else {name: getattr(scores, name) for name in scores.recorded}


def told(name: str, value: float | None) -> str:
    """``98.61 %``, ``0.9231``, or a dash where there is nothing to say."""
    return "–" if value is None else f"{100 * value:.2f} %" if name in SHARES else f"{value:.4f}"


def class_counts(logits_bc: torch.Tensor, labels_b: torch.Tensor) -> list[torch.Tensor]:
    """Hits at 1, hits at 5, and summed cross-entropy of a batch, as float32 scalars: not every device has float64."""
    best = top_classes(logits_bc)  # (B, 5)
    hit = best == labels_b[:, None]
    loss = F.cross_entropy(logits_bc, labels_b, reduction="sum")
    return [hit[:, 0].sum().float(), hit.any(1).sum().float(), loss.float()]


def scores_of(logits_nc: torch.Tensor, labels: torch.Tensor, device: torch.device) -> Scores:
    """Scores of logits (N, C) float32 on the CPU by the kind of the labels of the same rows, which each have one
    (``datasets._labels``): what ``evaluation.evaluate_networks`` gives of the network that said them on ``device``, and
    of several classes the calibration error too.
    """
    kind = label_kind(labels.numpy())
    if kind != "classes":
        return (multilabel_scores if kind == "binary" else regression_scores)(logits_nc, labels.view(len(labels), -1))
    totals = torch.zeros(3, dtype=torch.float64)
    for logits, y in zip(logits_nc.split(BATCH), labels.long().split(BATCH), strict=True):
        # On the device, which may choose otherwise between equal logits than the CPU does.
        totals += torch.stack(class_counts(logits.to(device), y.to(device))).cpu().to(torch.float64)
    top1, top5, loss = (totals / max(len(labels), 1)).tolist()
    ece = calibration(logits_nc, labels).ece if logits_nc.shape[1] > 1 else None
    return Accuracy(top1, top5, loss, len(labels), ece)


def multilabel_scores(logits_nk: torch.Tensor, labels_nk: torch.Tensor) -> Multilabel:
    """Logits (N, K) float32 and labels (N, K) uint8, 255 for none, on the CPU. With no yes at all both means are 0."""
    from torchmetrics.functional.classification import binary_average_precision, binary_f1_score

    known = labels_nk != UNKNOWN
    losses = F.binary_cross_entropy_with_logits(logits_nk, labels_nk.clamp_max(1).float(), reduction="none")
    loss = losses[known].mean().item()
    samples, precisions, f1s = int(known.any(1).sum()), [], []
    for logits, labels in zip(logits_nk.T, labels_nk.T.long(), strict=True):
        if not (labels == 1).any():
            continue
        # Ranks in place of sigmoids, which are equal for all logits that are large: the order is all that it looks at.
        ranks = logits.unique(return_inverse=True)[1].double() / len(logits)
        precisions.append(binary_average_precision(ranks, labels, ignore_index=UNKNOWN))
        f1s.append(binary_f1_score((logits > 0).double(), labels, ignore_index=UNKNOWN))
    if not precisions:
        return Multilabel(0.0, 0.0, loss, samples)
    return Multilabel(torch.stack(precisions).mean().item(), torch.stack(f1s).mean().item(), loss, samples)


def regression_scores(found_nk: torch.Tensor, wanted_nk: torch.Tensor) -> Regression:
    """Values (N, K) float32 on the CPU, NaN in ``wanted_nk`` for none. R² is over the outputs with at least two
    rows."""
    from torchmetrics.functional import cosine_similarity, r2_score

    found, wanted, known = found_nk.double(), wanted_nk.double(), ~wanted_nk.isnan()
    shares = [r2_score(found[rows, k], wanted[rows, k]) for k, rows in enumerate(known.T) if rows.sum() > 1]
    whole = known.all(1)
    cosine = None
    if wanted.shape[1] > 1 and whole.any():
        cosine = cosine_similarity(found[whole], wanted[whole], reduction="mean").item()
    r2 = torch.stack(shares).mean().item() if shares else 0.0
    return Regression(r2, cosine, (found - wanted)[known].square().mean().item(), int(known.any(1).sum()))
