"""Scores of each kind against scikit-learn's and against their definitions."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from softcache.evaluating.predictions import predictions
from softcache.models._network import Network
from softcache.models._preprocess import Preprocess
from softcache.stream.inputs import pick_inputs
from softcache.training.evaluation import evaluate_networks
from softcache.training.scores import (
    Accuracy,
    Multilabel,
    multilabel_scores,
    regression_scores,
    scores_from,
    scores_of,
)
from softcache.views._open import open_viewed

metrics = pytest.importorskip("sklearn.metrics")


def test_several_yes_or_no_are_scored_as_scikit_learn_does() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(60, 4)).astype(np.float32), rng.integers(0, 2, (60, 4)).astype(np.uint8)
    labels[:, 3] = 0  # nobody has it: it is in no mean
    labels[::6, 1] = 255
    found = multilabel_scores(torch.from_numpy(logits), torch.from_numpy(labels))
    known = [labels[:, k] != 255 for k in range(3)]
    precision = [metrics.average_precision_score(labels[r, k], logits[r, k]) for k, r in enumerate(known)]
    f1 = [metrics.f1_score(labels[r, k], logits[r, k] > 0) for k, r in enumerate(known)]
    assert found.map == pytest.approx(np.mean(precision), rel=1e-5)
    assert found.f1 == pytest.approx(np.mean(f1), rel=1e-5)
    assert found.samples == 60
    none = multilabel_scores(torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.uint8))
    assert (none.map, none.f1, none.loss) == (0.0, 0.0, pytest.approx(np.log(2)))


def test_values_are_scored_as_scikit_learn_does() -> None:
    rng = np.random.default_rng(1)
    wanted = rng.normal(size=(50, 3)).astype(np.float32)
    said = (wanted + 0.3 * rng.normal(size=wanted.shape)).astype(np.float32)
    found = regression_scores(torch.from_numpy(said), torch.from_numpy(wanted))
    assert found.r2 == pytest.approx(metrics.r2_score(wanted, said), rel=1e-5)
    assert found.mse == pytest.approx(metrics.mean_squared_error(wanted, said), rel=1e-5)
    cosine = (said * wanted).sum(1) / np.linalg.norm(said, axis=1) / np.linalg.norm(wanted, axis=1)
    assert found.cosine == pytest.approx(cosine.mean(), rel=1e-5)
    gaps = wanted.copy()
    gaps[::5, 2] = np.nan
    rows = ~np.isnan(gaps[:, 2])
    found = regression_scores(torch.from_numpy(said), torch.from_numpy(gaps))
    each = [metrics.r2_score(wanted[:, k], said[:, k]) for k in (0, 1)]
    assert found.r2 == pytest.approx(np.mean([*each, metrics.r2_score(wanted[rows, 2], said[rows, 2])]), rel=1e-5)
    assert found.cosine == pytest.approx(cosine[rows].mean(), rel=1e-5)


class Sure(nn.Module):
    """Says class 0 with a probability of 0.8 whatever it sees."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chances = torch.full((len(x), 10), 0.2 / 9)
        chances[:, 0] = 0.8
        return chances.log()


def test_the_calibration_error_is_the_gap_between_confidence_and_hits() -> None:
    viewed = open_viewed("digits", "test", augment="none", size=8)
    network = Network(Sure(), spec="sure", classes=10, channels=1, preprocess=Preprocess((0.0,), (1.0,)))
    labels, cpu = viewed.samples.labels, torch.device("cpu")
    inputs = pick_inputs(viewed, cpu, workers=0)
    (said,) = predictions([(network, "off")], viewed, inputs, cpu)
    found = scores_of(said.logits, said.labels, cpu)
    assert isinstance(found, Accuracy)
    (during,) = evaluate_networks([(network, "off")], inputs, labels, cpu)
    assert dataclasses.replace(found, ece=None) == during
    share = float((labels == 0).mean())
    assert found.top1 == pytest.approx(share)
    assert found.ece == pytest.approx(0.8 - share, rel=1e-5)
    assert found.loss == pytest.approx(-share * np.log(0.8) - (1 - share) * np.log(0.2 / 9), rel=1e-5)


def test_scores_come_back_from_a_record() -> None:
    assert scores_from({"map": 0.5, "f1": 0.25, "loss": 1.0, "samples": 3}) == Multilabel(0.5, 0.25, 1.0, 3)
    assert scores_from({"top1": 0.5, "top5": 1.0, "loss": 1.0, "samples": 3}) == Accuracy(0.5, 1.0, 1.0, 3)


def test_mean_average_precision_of_large_logits_is_that_of_their_order() -> None:
    rng = np.random.default_rng(4)
    z, labels = rng.standard_normal((400, 3)).astype(np.float32), rng.integers(0, 2, (400, 3), dtype=np.uint8)
    for logits in (10 * z + 60, 10 * z - 60, z):
        found = multilabel_scores(torch.from_numpy(logits), torch.from_numpy(labels))
        assert found.map == pytest.approx(metrics.average_precision_score(labels, logits, average="macro"), abs=1e-6)


def test_one_output_alone_is_scored() -> None:
    """Two of three are ranked rightly: precision 1/1 and 2/3; of the two that are said to be yes one is."""
    found = multilabel_scores(torch.tensor([[3.0], [1.0], [-1.0], [9.0]]), torch.tensor([[1], [0], [1], [255]]).byte())
    assert found.map == pytest.approx((1 + 2 / 3) / 2)
    assert found.f1 == pytest.approx(0.5)
