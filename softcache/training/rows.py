"""Which rows a training sees, which it holds out, and which labels it may use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from softcache.datasets._labels import hidden, labelled, strata
from softcache.datasets._subset import holdout_rows, labelled_rows
from softcache.errors import UsageError
from softcache.views._open import Viewed

VALIDATION_SEED = 0  # the same rows are held out in every run, whatever its seed


@dataclass(frozen=True)
class TrainingRows:
    """``train``: rows that are trained on; ``held``: those that choose the epoch; ``visible``: labels that may be used
    in training, in the form of the dataset's, with none for the others; ``length``: keys an epoch."""

    train: np.ndarray
    held: np.ndarray
    visible: np.ndarray
    length: int


def choose_rows(
    labels: np.ndarray,
    *,
    val_fraction: float,
    label_fraction: float,
    seed: int,
    labels_alone: bool,
    needing_labels: Sequence[str] = (),
    choosing_by_labels: bool = True,
) -> TrainingRows:
    """``labels``: of any kind (``datasets._labels``). ``val_fraction``: the share of rows that is held out;
    ``label_fraction``: the share of the labels that may be used, drawn with ``seed``; both are shares of each class,
    of labels of other kinds shares of all rows. ``choosing_by_labels``: whether held-out rows are judged by their
    labels. ``labels_alone``: whether there are no other targets:
    then rows without a label are left out, and an epoch still has as many keys as there are rows. ``needing_labels``:
    names of losses that can't do without.

    Errors: ``UsageError`` where labels are needed and there are none.
    """
    visible = labels
    held = np.zeros(len(labels), dtype=bool)
    if val_fraction:
        if choosing_by_labels and not labelled(labels).any():
            raise UsageError("--val-fraction chooses by the labels of held-out rows, and this dataset has none")
        held = holdout_rows(strata(labels), val_fraction, VALIDATION_SEED)
        visible = hidden(visible, held)
    if label_fraction < 1:
        visible = hidden(visible, ~labelled_rows(strata(visible), label_fraction, seed))
    train = np.flatnonzero(~held & labelled(visible)) if labels_alone else np.flatnonzero(~held)
    if not len(train):
        raise UsageError("a training on labels alone needs labels, and this dataset has none")
    if needing_labels and not labelled(visible).any():
        raise UsageError(f"--loss {needing_labels[0]} needs labels, and this dataset has none: use one such as kl")
    length = len(labels) - int(held.sum()) if labels_alone else len(train)
    return TrainingRows(train, np.flatnonzero(held), visible, length)


def without_held(viewed: Viewed, held: np.ndarray) -> Callable[[np.ndarray, int], np.ndarray] | None:
    """Views that mix rows may show a held-out one: such keys are left out."""
    if viewed.recipe.mix is None or not len(held):
        return None

    def fits(rows: np.ndarray, view: int) -> np.ndarray:
        mixing = viewed.mixing(rows, view)
        assert mixing is not None
        return ~np.isin(mixing[0], held)

    return fits
