"""The budget of labels: what may not be used has no influence. And the knobs of the objective."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import harness_process
import numpy as np
import pytest
import torch
from harness_train import config, fit, lines, make_cache, make_teacher, same, weights

from softcache.errors import UsageError
from softcache.losses._schedule import Schedule
from softcache.losses._terms import parse_terms
from softcache.stages import _training as stage
from softcache.training.objective import Objective
from softcache.training.task_loss import hard_loss
from softcache.views._open import open_viewed

SIZE = 8
NEEDING = ("dkd:weight=1", "nkd", "wsld")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    make_teacher(folder / "teacher")
    make_cache(folder / "plain", folder / "teacher", hint=("fc:in",))
    for recipe in MIXED:
        make_cache(folder / recipe.partition(":")[0], folder / "teacher", augment=recipe, dtype="float64")
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {"loss": NEEDING},
        {"hint": ("crd:teacher=fc:in,student=fc:in,negatives=64",)},
        {"alpha": "0"},
        {"caches": "cutmix", "loss": NEEDING},
        {"val_fraction": 0.2, "loss": NEEDING},
    ],
    ids=["losses", "crd", "labels alone", "mixed", "held out"],
)
def test_labels_outside_the_budget_change_nothing(
    options: dict[str, Any], made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = dict(options)
    cache = str(made / options.pop("caches", "plain"))
    # Labels alone with a cache's keys would be a usage error: that run makes its own.
    asked = {"size": SIZE} if options == {"alpha": "0"} else {"cache": (cache,)}
    choose = stage.choose_rows

    def run(name: str, change: str) -> dict[str, torch.Tensor]:
        def changed(labels: np.ndarray, **given: Any) -> Any:
            rows = choose(labels, **given)
            spared = np.isin(np.arange(len(labels)), rows.held)  # they choose the epoch, which is their purpose
            hidden = (rows.visible < 0) & ~spared
            assert hidden.sum() > 900
            if change == "hidden":
                labels[hidden] = (labels[hidden] + 3) % 10
            elif change == "visible":
                at = rows.visible >= 0
                rows.visible[at] = (rows.visible[at] + 3) % 10
            return rows

        with monkeypatch.context() as patched:
            patched.setattr(stage, "choose_rows", changed)
            fit(tmp_path / name, label_fraction=0.1, **asked, **options)
        return weights(tmp_path / name)

    true = run("true", "")
    assert same(true, run("hidden", "hidden"))
    if "hint" not in options:  # crd contrasts classes, and these are the same under other names
        assert not same(true, run("visible", "visible"))


def test_the_budget_is_a_share_of_each_class(made: Path, tmp_path: Path) -> None:
    samples = open_viewed("digits", "train").samples
    fit(tmp_path / "run", alpha="0", label_fraction=0.1, size=SIZE, epochs=1)
    assert config(tmp_path / "run")["options"]["label_fraction"] == 0.1
    # As many steps as on all rows, drawn from the labelled ones.
    assert lines(tmp_path / "run")[0]["samples"] == len(samples)


# Mixed views.


MIXED = ("mixup:alpha=0.5", "cutmix:alpha=1")
# Pixels, partners' labels and shares, in whatever process this is run.
MIXES = f"""
import hashlib, numpy as np
from softcache.views._open import open_viewed
rows, found = np.arange(0, 1000, 7), []
for recipe in {MIXED!r}:
    viewed = open_viewed("digits", "train", augment=recipe, size={SIZE}, view_seed=9)
    partners, weight = viewed.mixing(rows, 3)
    found += [viewed.batch(rows, 3).numpy(), viewed.samples.labels[partners], weight]
print([hashlib.sha256(part.tobytes()).hexdigest() for part in found])
"""


def test_mixed_views_are_the_same_in_another_process(capsys: pytest.CaptureFixture[str]) -> None:
    theirs = harness_process.run([sys.executable, "-c", MIXES], capture_output=True, text=True, check=True).stdout
    names: dict[str, Any] = {}
    exec(MIXES, names)
    assert theirs == capsys.readouterr().out
    for _, weight in [open_viewed("digits", "train", augment=m).mixing(names["rows"], 3) for m in MIXED]:  # type: ignore[misc]
        assert 0.2 < float(weight.mean()) < 0.8
        assert float(weight.std()) > 0.1


@pytest.mark.parametrize("recipe", MIXED)
def test_mixed_views_from_a_cache_equal_those_of_a_live_teacher(recipe: str, made: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"loss": ("kl", "dkd:weight=1"), "label_smoothing": 0.1}
    fit(tmp_path / "cached", cache=(str(made / recipe.partition(":")[0]),), **options)
    live: dict[str, Any] = {"augment": recipe, "size": SIZE, "views": 2, "dtype": "float64"}
    fit(tmp_path / "live", online=True, teacher=str(made / "teacher"), **live, **options)
    assert same(weights(tmp_path / "cached"), weights(tmp_path / "live"))


def test_the_hard_loss_of_mixed_and_smoothed_labels_is_cross_entropy_with_their_mixture() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    own, partner = torch.tensor([0, 1, 2, -1, 4, 0]), torch.tensor([1, 1, -1, 3, 0, 2])
    weight = torch.tensor([0.9, 0.3, 0.5, 0.5, 1.0, 0.25], dtype=torch.float64)
    smoothing = 0.2
    counted = [0, 1, 4, 5]  # a mixture counts where both labels are known
    total = 0.0
    for row in counted:
        target = torch.full((5,), smoothing / 5, dtype=torch.float64)
        target[own[row]] += (1 - smoothing) * weight[row]
        target[partner[row]] += (1 - smoothing) * (1 - weight[row])
        total -= float((target * logits[row].log_softmax(0)).sum())
    found = hard_loss(logits, own, smoothing, (partner, weight))
    assert float(found) == pytest.approx(total / len(counted))


def test_a_batch_without_labels_has_no_hard_loss_but_a_gradient() -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    loss = hard_loss(logits, torch.full((3,), -1))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


# Knobs.


def test_knobs_change_over_the_epochs() -> None:
    terms = parse_terms(["kl", "mse:weight=0:2:linear", "dist:T=1"])
    objective = Objective(terms, Schedule.parse("1:0.5:linear"), None, Schedule.parse("8:2:linear"), 3)
    assert [objective.temperatures(epoch) for epoch in range(3)] == [[8, 8, 1], [5, 5, 1], [2, 2, 1]]
    assert [objective.weights(epoch) for epoch in range(3)] == [(1, 0), (0.75, 0.25), (0.5, 0.5)]
    generator = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(6, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    for epoch, (T, alpha, mse) in enumerate([(8, 1, 0), (5, 0.75, 1), (2, 0.5, 2)]):
        p = (teacher / T).softmax(1)
        kl = T * T * (p * (p.log() - (student / T).log_softmax(1))).sum(1).mean()
        dist = terms[2](student, teacher, 1, labels) * 2
        hard = torch.nn.functional.cross_entropy(student, labels)
        expected = alpha * (kl + mse * (student - teacher).square().mean() + dist) + (1 - alpha) * hard
        values = objective.values({"logits": student}, {"logits": [teacher]}, labels, labels, None, epoch)
        parts = objective.total(values, epoch)
        assert float(parts.total) == pytest.approx(float(expected))


def test_a_loss_has_its_own_temperature_unless_one_is_given(made: Path, tmp_path: Path) -> None:
    fit(tmp_path / "own", cache=(str(made / "plain"),), loss=("kl", "wsld"), epochs=1)
    fit(tmp_path / "given", cache=(str(made / "plain"),), loss=("kl", "wsld:T=3"), T="6:2:cosine", epochs=1)
    assert [entry["T"] for entry in config(tmp_path / "own")["losses"]] == ["4", "2"]
    assert [entry["T"] for entry in config(tmp_path / "given")["losses"]] == ["6:2:cosine", "3"]


def test_losses_that_need_labels_are_refused_without_any() -> None:
    """A set without labels serves soft targets; a loss on labels would be 0 for every row."""
    none = np.full(24, -1, np.int32)
    given: dict[str, Any] = {"val_fraction": 0, "label_fraction": 1, "seed": 0, "labels_alone": False}
    with pytest.raises(UsageError, match="--loss dkd needs labels"):
        stage.choose_rows(none, **given, needing_labels=["dkd"])
    assert len(stage.choose_rows(none, **given).train) == 24
    assert [term.name for term in parse_terms(NEEDING) if "labels" in term.needs] == [
        s.partition(":")[0] for s in NEEDING
    ]
