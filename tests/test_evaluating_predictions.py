"""What networks and caches say of clean rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from harness_train import STUDENT, make_cache, make_teacher

from softcache.cache.reader import Cache
from softcache.errors import CacheError, ModelError, PixelsError
from softcache.evaluating.measures import kl
from softcache.evaluating.predictions import cached_predictions, predictions
from softcache.models._open import open_network
from softcache.stream.inputs import pick_inputs
from softcache.views._open import open_viewed, view_samples

CPU = torch.device("cpu")
CLEAN = {"split": "test", "augment": "none", "views": 1}


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, and its cache of the clean test split."""
    folder = tmp_path_factory.mktemp("predictions")
    make_teacher(folder / "teacher")
    make_cache(folder / "cache", folder / "teacher", **CLEAN)
    return folder


def test_a_caches_predictions_are_the_teachers(there: Path) -> None:
    viewed = open_viewed("digits", "test", augment="none", size=8)
    cached = cached_predictions(Cache(there / "cache"), viewed)
    network = open_network(str(there / "teacher"), classes=10, statistics=viewed.samples.statistics)
    (live,) = predictions([(network, "off")], viewed, pick_inputs(viewed, CPU, workers=0), CPU)
    assert torch.allclose(cached.logits, live.logits, atol=1e-5)
    assert torch.equal(cached.labels, live.labels)
    assert cached.labels.tolist() == viewed.samples.labels.tolist()
    assert cached.class_names == live.class_names == viewed.samples.classes
    assert cached.rows.tolist() == live.rows.tolist() == list(range(len(viewed)))


def test_rows_without_a_label_are_predicted_in_their_place() -> None:
    viewed = open_viewed("digits", "test", augment="none", size=8)
    network = open_network(STUDENT, classes=10, statistics=viewed.samples.statistics, seed=0)
    inputs = pick_inputs(viewed, CPU, workers=0)
    (whole,) = predictions([(network, "off")], viewed, inputs, CPU)
    viewed.samples.labels = np.where(np.arange(len(viewed)) % 3 == 1, -1, viewed.samples.labels).astype(np.int32)
    (found,) = predictions([(network, "off")], viewed, inputs, CPU)
    assert torch.allclose(found.logits, whole.logits, atol=1e-5)
    known = found.labelled()
    assert known.rows.tolist() == [row for row in range(len(viewed)) if row % 3 != 1]
    assert torch.equal(known.logits, found.logits[torch.from_numpy(known.rows)])
    assert bool((known.labels >= 0).all())


def test_leaders_have_the_logits_for_each_temperature(there: Path) -> None:
    """All classes but one are leaders, and a tail of one class is known at any temperature."""
    viewed = open_viewed("digits", "test", augment="none", size=8)
    cache = Cache(make_cache(there / "leaders", there / "teacher", **{**CLEAN, "codec": "topk:k=9"}))
    found, whole = (cached_predictions(one, viewed) for one in (cache, Cache(there / "cache")))
    assert found.leaders is not None
    for T in (1.0, 4.0):
        assert kl(found.at(T), whole.at(T), T) < 1e-5
    some = found.labelled()
    assert torch.equal(some.at(4.0), found.at(4.0))


def test_other_caches_are_refused_each_in_a_line(there: Path) -> None:
    viewed = open_viewed("digits", "test", augment="none", size=8)
    cache = Cache(there / "cache")
    with pytest.raises(CacheError, match="with split test, digits has train"):
        cached_predictions(cache, open_viewed("digits", "train", augment="none", size=8))
    with pytest.raises(CacheError, match=r"views of size 8, the network is evaluated at 16: .*--size 16"):
        cached_predictions(cache, open_viewed("digits", "test", augment="none", size=16))
    augmented = Cache(make_cache(there / "crop", there / "teacher", split="test", augment="crop:pad=1"))
    with pytest.raises(CacheError, match="views of crop:pad=1,fill=0, and a network is evaluated on clean inputs"):
        cached_predictions(augmented, viewed)
    relabelled = open_viewed("digits", "test", augment="none", size=8)
    relabelled.samples.labels = relabelled.samples.labels[::-1].copy()
    with pytest.raises(CacheError, match="other labels than digits has now"):
        cached_predictions(cache, relabelled)
    samples = open_viewed("digits", "test", augment="none", size=8).samples
    samples.images = 255 - samples.images
    with pytest.raises(PixelsError, match=r"row 0 .*has other pixels than the teacher"):
        cached_predictions(cache, view_samples(samples, "none", size=8))


class Words(torch.nn.Module):
    """Three vectors of logits a row."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight.expand(len(x), 3, 10)


def test_several_vectors_a_row_are_refused() -> None:
    from softcache.models._network import Network
    from softcache.models._preprocess import Preprocess

    viewed = open_viewed("digits", "test", augment="none", size=8)
    network = Network(Words(), spec="words", classes=10, channels=1, preprocess=Preprocess((0.0,), (1.0,)))
    with pytest.raises(ModelError, match=r"words gives logits of shape \(256, 3, 10\).*one vector a sample"):
        predictions([(network, "off")], viewed, pick_inputs(viewed, CPU, workers=0), CPU)
