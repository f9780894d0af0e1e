"""Several teachers from caches made apart, and targets that are means over views."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness_train import STUDENT, config, fit, lines, make_cache, make_teacher, same, weights, write_teacher

from softcache.cache.reader import Cache
from softcache.errors import CacheError, UsageError
from softcache.losses._schedule import Schedule
from softcache.losses._terms import parse_terms
from softcache.models._open import open_network
from softcache.stream.mean import MeanTargets, mean_values
from softcache.stream.parts import Part
from softcache.training.objective import Objective
from softcache.views._open import open_viewed

HARNESS = STUDENT.rpartition(":")[0]
# Plain SGD, so that rounding isn't amplified as Adam's division amplifies it where gradients vanish.
STEADY: dict[str, Any] = {
    "amp": "off",
    "alpha": 0.9,
    "batch_size": 64,
    "optimizer": "sgd",
    "lr": 0.02,
    "momentum": 0.0,
    "teacher_weight": (0.7, 0.3),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ensemble")
    members = [make_teacher(folder / f"teacher_{name}", seed=seed) for name, seed in (("a", 1), ("b", 2))]
    statistics = open_viewed("digits", "train").samples.statistics
    for name in ("pair", "pair_at_4"):
        both = open_network(f"{HARNESS}:{name}", classes=10, statistics=statistics)
        both.model.a.load_state_dict(members[0].model.state_dict())
        both.model.b.load_state_dict(members[1].model.state_dict())
        write_teacher(both, folder / f"teacher_{name}")
        make_cache(folder / name, folder / f"teacher_{name}")
    make_cache(folder / "a", folder / "teacher_a", views=3)
    make_cache(folder / "b", folder / "teacher_b", codec="fp32")
    return folder


@pytest.mark.parametrize(
    ("combine", "averaged", "losses"),
    [("logits", "pair", ("kl", "mse")), ("probs", "pair_at_4", ("kl", "dist"))],
)
def test_an_ensemble_of_caches_is_a_cache_of_the_ensemble(
    combine: str, averaged: str, losses: tuple[str, ...], made: Path, tmp_path: Path
) -> None:
    common = {**STEADY, "loss": losses, "combine": combine, "T": "4"}
    fit(tmp_path / "apart", cache=(str(made / "a"), str(made / "b")), **common)
    fit(tmp_path / "one", cache=(str(made / averaged),), **{**common, "teacher_weight": (), "combine": "logits"})
    apart, one = weights(tmp_path / "apart"), weights(tmp_path / "one")
    for name, value in one.items():
        torch.testing.assert_close(apart[name], value, rtol=0, atol=1e-5, msg=name)
    for ours, theirs in zip(lines(tmp_path / "apart"), lines(tmp_path / "one"), strict=True):
        assert ours["soft_loss"] == pytest.approx(theirs["soft_loss"], abs=1e-5)
    # The views that all have: three of the one and two of the other.
    assert config(tmp_path / "apart")["view_numbers"] == [0, 1]
    fit(tmp_path / "alone", cache=(str(made / "a"),), views=2, **{**common, "teacher_weight": (), "combine": "logits"})
    assert not same(weights(tmp_path / "alone"), apart)


def test_shares_are_scaled_and_equal_by_default() -> None:
    terms = parse_terms(["mse"])
    teachers = [torch.randn(4, 5), torch.randn(4, 5)]
    student, labels = torch.randn(4, 5), torch.zeros(4, dtype=torch.int64)

    def soft(shares: tuple[float, ...]) -> float:
        objective = Objective(terms, Schedule.constant(1), None, None, 1, shares=shares)
        return float(objective.soft(objective.soft_values({"logits": student}, {"logits": teachers}, labels, 0), 0))

    mean = (teachers[0] + teachers[1]) / 2
    assert soft(()) == pytest.approx(float((student - mean).square().mean()))
    assert soft((2, 2)) == pytest.approx(soft(()))
    assert soft((3, 1)) == pytest.approx(float((student - 0.75 * teachers[0] - 0.25 * teachers[1]).square().mean()))


def test_averaged_probabilities_without_a_temperature_are_those_at_1() -> None:
    terms = parse_terms(["hard"])
    # At T 1 the second teacher's certainty prevails, at T 20 the first's.
    first, second = torch.tensor([[3.0, 0.0, 0.0]]), torch.tensor([[0.0, 9.0, 9.5]])
    student, labels = torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([0])
    objective = Objective(
        terms, Schedule.constant(1), None, Schedule.constant(20), 1, combine="probs", shares=(0.3, 0.7)
    )
    probs = 0.3 * first.softmax(1) + 0.7 * second.softmax(1)
    expected = -student.log_softmax(1)[0, int(probs.argmax())]
    values = objective.soft_values({"logits": student}, {"logits": [first, second]}, labels, 0)
    assert float(objective.soft(values, 0)) == pytest.approx(float(expected))


def test_caches_of_other_pixels_are_refused_and_of_the_same_pixels_by_another_name_are_not(
    made: Path, tmp_path: Path
) -> None:
    other = make_cache(tmp_path / "other", made / "teacher_b", view_seed=5)
    with pytest.raises(CacheError, match=r"are of different pixels in 1,\d+ of 1,438 rows of view 0 \(seed 0 and 5\)"):
        fit(tmp_path / "run", cache=(str(made / "a"), str(other)))
    still = make_cache(tmp_path / "still", made / "teacher_a", augment="none")
    unmoved = make_cache(tmp_path / "unmoved", made / "teacher_b", augment="flip:p=0")
    fit(tmp_path / "run", cache=(str(still), str(unmoved)))
    with pytest.raises(UsageError, match="are one cache: leave one out"):
        fit(tmp_path / "twice", cache=(str(still), str(still)))


def test_views_that_were_not_copied_are_left_out(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "a", tmp_path / "part")
    shutil.rmtree(tmp_path / "part" / "view-0000")
    fit(tmp_path / "run", cache=(str(tmp_path / "part"),), views=1)
    assert config(tmp_path / "run")["view_numbers"] == [1]
    with pytest.raises(CacheError, match="has 2 complete views, 3 are asked for"):
        fit(tmp_path / "more", cache=(str(tmp_path / "part"),), views=3)


# Targets that are means over views.

CPU = torch.device("cpu")


def held_floats(targets: MeanTargets) -> int:
    """Numbers in all tensors that the targets keep."""
    found = [part for value in vars(targets).values() if isinstance(value, dict) for part in value.values()]
    return sum(part.numel() for parts in found for part in parts if isinstance(part, torch.Tensor))


def test_means_that_do_not_fit_the_budget_are_computed_batch_by_batch_to_the_same_bits(made: Path) -> None:
    caches = [Cache(made / "a"), Cache(made / "b")]
    needed = sum(4 * cache.rows * cache.layout("logits").width for cache in caches)
    held = MeanTargets({"logits": caches}, (1, 0), CPU, budget=needed)
    asked = MeanTargets({"logits": caches}, (1, 0), CPU, budget=needed - 1)
    assert (4 * held_floats(held), held_floats(asked)) == (needed, 0)
    assert (held.name, asked.name) == ("averaged over views, held on cpu", "averaged batch by batch")
    rng = np.random.default_rng(0)
    for count in (1, 32, caches[0].rows):
        rows = rng.choice(caches[0].rows, count, replace=False)
        found = [
            t.targets(Part(rows, (0,)), torch.from_numpy(rows), torch.empty(0)).outputs["logits"] for t in (held, asked)
        ]
        for one, other, cache in zip(*found, caches, strict=True):
            assert torch.equal(one, other)
            column = cache.column("logits")
            views = [column.decode(column.gather(view, rows)).double() for view in (1, 0)]
            assert torch.equal(one, ((views[0] + views[1]) / 2).float())


def test_a_training_on_means_without_memory_reaches_the_same_student(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(tmp_path / "held", cache=(str(made / "a"),), targets="mean")
    monkeypatch.setattr("softcache.stream.mean.memory_budget", lambda device: 0)
    fit(tmp_path / "asked", cache=(str(made / "a"),), targets="mean")
    assert same(weights(tmp_path / "held"), weights(tmp_path / "asked"))


def test_mean_targets_are_the_mean_values_of_a_rows_views(made: Path) -> None:
    cache = Cache(made / "a")
    reader, rows = cache.column("logits"), np.arange(cache.rows)
    views = []
    for view in range(3):
        arrays = reader.gather(view, rows)
        (values,) = [array for name, array in arrays.items() if name != "digest"]
        views.append(values.astype(np.float64))
    found = mean_values(reader, (0, 1, 2), CPU)
    np.testing.assert_allclose(found.numpy(), np.mean(views, axis=0), rtol=1e-6, atol=1e-6)


def test_the_mean_over_one_view_is_that_view_and_pixels_are_fresh(made: Path, tmp_path: Path) -> None:
    cache = (str(made / "a"),)
    fit(tmp_path / "matched", cache=cache, views=1, epochs=1)
    fit(tmp_path / "mean", cache=cache, views=1, epochs=1, targets="mean")
    assert same(weights(tmp_path / "matched"), weights(tmp_path / "mean"))
    recorded = config(tmp_path / "mean")
    assert recorded["options"]["targets"] == "mean"
    assert recorded["view_numbers"] == [0]
    # In the second epoch matched views come again, and mean targets get pixels that no one has seen.
    fit(tmp_path / "matched_2", cache=cache, views=1, epochs=2)
    fit(tmp_path / "mean_2", cache=cache, views=1, epochs=2, targets="mean")
    first = [lines(tmp_path / run)[0]["loss"] for run in ("matched_2", "mean_2")]
    assert first[0] == first[1]
    assert not same(weights(tmp_path / "matched_2"), weights(tmp_path / "mean_2"))


def test_means_of_mixed_views_are_refused(made: Path, tmp_path: Path) -> None:
    mixed = make_cache(tmp_path / "mixed", made / "teacher_a", augment="mixup:alpha=0.2", views=1)
    with pytest.raises(UsageError, match="mixes a row with another in each view"):
        fit(tmp_path / "run", cache=(str(mixed),), targets="mean")
