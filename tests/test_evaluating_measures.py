"""Measures of logits against scikit-learn, torchmetrics, scipy and their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from softcache.errors import UsageError
from softcache.evaluating.measures import (
    agreement,
    binary_agreement,
    binary_kl,
    calibration,
    confusion,
    kl,
    nll,
    per_class,
    top_classes,
)

metrics = pytest.importorskip("sklearn.metrics")
special = pytest.importorskip("scipy.special")
stats = pytest.importorskip("scipy.stats")


@pytest.fixture(scope="module")
def said() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (500, 7) float32 and labels, of which every ninth is absent."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 7, 500).astype(np.int32)
    logits = 1.5 * rng.standard_normal((500, 7)) + 2 * np.eye(7)[labels]
    labels[::9] = -1
    return torch.from_numpy(logits.astype(np.float32)), torch.from_numpy(labels)


def test_nll_is_scikit_learns_log_loss(said: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = said
    known = labels >= 0
    chances = special.softmax(logits[known].numpy().astype(np.float64), axis=1)
    assert nll(logits, labels) == pytest.approx(metrics.log_loss(labels[known], chances, labels=range(7)), rel=1e-9)
    assert math.isnan(nll(logits, torch.full_like(labels, -1)))


@pytest.mark.parametrize("bins", [5, 15])
def test_calibration_is_that_of_torchmetrics(said: tuple[torch.Tensor, torch.Tensor], bins: int) -> None:
    from torchmetrics.functional.classification import multiclass_calibration_error

    logits, labels = said
    known = labels >= 0
    wanted = multiclass_calibration_error(
        logits[known].softmax(1), labels[known].long(), num_classes=7, n_bins=bins, norm="l1"
    )
    found = calibration(logits, labels, bins)
    assert found.ece == pytest.approx(wanted.item(), rel=1e-5)
    assert int(found.count.sum()) == int(known.sum())
    there = found.count > 0
    gaps = (found.accuracy - found.confidence).abs()[there] * found.count[there]
    assert gaps.sum().item() / int(known.sum()) == pytest.approx(found.ece, rel=1e-12)
    assert found.accuracy[~there].isnan().all()
    assert bool(((found.confidence[there] * bins).ceil() == 1 + there.nonzero()[:, 0]).all()), "each in its own bin"


def test_confidences_of_exactly_one_are_in_the_last_bin() -> None:
    """Half of them are wrong: the gap is one half."""
    logits = torch.tensor([[1000.0, 0.0], [1000.0, 0.0]])
    found = calibration(logits, torch.tensor([0, 1]))
    assert found.ece == 0.5
    assert found.count.tolist() == [0] * 14 + [2]
    assert (found.confidence[14].item(), found.accuracy[14].item()) == (1.0, 0.5)


@pytest.mark.parametrize("T", [0.5, 1.0, 4.0])
def test_kl_is_scipys_of_the_tempered_probabilities(T: float) -> None:
    rng = np.random.default_rng(1)
    student, teacher = (3 * rng.standard_normal((5000, 4)).astype(np.float32) for _ in range(2))
    s, t = (special.softmax(z.astype(np.float64) / T, axis=1) for z in (student, teacher))
    found = kl(torch.from_numpy(student), torch.from_numpy(teacher), T)
    assert found == pytest.approx(np.mean(stats.entropy(t, s, axis=1)), rel=1e-9)
    # of one output each: yes and no are the classes of the logits (z, 0)
    yes = [torch.from_numpy(z[:, :1]) for z in (student, teacher)]
    both = [torch.cat([z, torch.zeros_like(z)], 1) for z in yes]
    assert binary_kl(*yes, T) == pytest.approx(kl(*both, T), rel=1e-9)


def test_a_student_that_is_the_teacher_agrees_in_all() -> None:
    logits = torch.randn(300, 10, generator=torch.Generator().manual_seed(0))
    assert agreement(logits, logits) == 1.0
    assert kl(logits, logits, 3.0) == pytest.approx(0.0, abs=1e-15)
    assert kl(logits + 7, logits) == pytest.approx(0.0, abs=1e-12), "logits are known up to a constant"
    assert binary_agreement(logits, logits) == 1.0
    assert binary_kl(logits, logits) == 0.0


def test_agreement_counts_equal_top_classes() -> None:
    student = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 3.0], [0.0, 1.0, 3.0]])
    teacher = torch.tensor([[1.0, 0.5, 0.0], [2.0, 1.0, 0.0], [0.0, 1.0, 3.0], [9.0, 1.0, 3.0]])
    assert agreement(student, teacher) == 0.5
    yes = torch.tensor([[1.0, -1.0], [1.0, 1.0]])
    assert binary_agreement(yes, torch.tensor([[2.0, 3.0], [-1.0, 1.0]])) == 0.5


def test_confusion_and_classes_are_scikit_learns(said: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = said
    known = labels >= 0
    wanted = metrics.confusion_matrix(labels[known], logits[known].argmax(1), labels=range(7))
    assert confusion(logits, labels).tolist() == wanted.tolist()
    found = per_class(logits, labels)
    recall = metrics.recall_score(labels[known], logits[known].argmax(1), labels=range(7), average=None)
    assert found.accuracy.numpy() == pytest.approx(recall)
    assert found.count.tolist() == np.bincount(labels[known], minlength=7).tolist()


def test_a_class_without_rows_has_no_accuracy() -> None:
    found = per_class(torch.eye(3), torch.tensor([0, 1, -1]))
    assert found.count.tolist() == [1, 1, 0]
    assert found.accuracy[:2].tolist() == [1.0, 1.0]
    assert bool(found.accuracy[2].isnan())


def test_the_top_class_is_the_same_whoever_asks() -> None:
    """Equal logits, as half precision makes many: one rule breaks them."""
    logits = torch.randint(0, 3, (200, 12), generator=torch.Generator().manual_seed(1)).float()
    assert torch.equal(top_classes(logits, 1)[:, 0], top_classes(logits, 5)[:, 0])
    assert top_classes(torch.zeros(2, 3)).shape == (2, 3)


def test_what_cant_be_compared_is_refused() -> None:
    for measure in (agreement, kl, binary_agreement, binary_kl):
        with pytest.raises(UsageError, match=r"logits are \(3, 2\), the teacher's \(3, 4\)"):
            measure(torch.zeros(3, 2), torch.zeros(3, 4))
    with pytest.raises(UsageError, match="above 0, is 0"):
        kl(torch.zeros(1, 2), torch.zeros(1, 2), 0)
