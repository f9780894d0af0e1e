"""FitNets in two stages, held-out rows, where the student starts, and what is frozen."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness_train import (
    HINTS,
    STUDENT,
    TEACHER,
    command,
    config,
    fit,
    lines,
    make_cache,
    make_teacher,
    same,
    student,
    weights,
)

from softcache.datasets._subset import holdout_rows
from softcache.errors import ModelError
from softcache.models._folder import save_network
from softcache.models._open import open_network
from softcache.stages.eval import evaluate
from softcache.training import learner, loop
from softcache.training.initialize import copy_parameters
from softcache.views._open import open_viewed

HINT = ("fitnet:teacher=layer1,student=layer1",)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stages")
    make_teacher(folder / "teacher")
    make_cache(folder / "cache", folder / "teacher", hint=HINTS)
    return folder


def cached(made: Path, **options: Any) -> dict[str, Any]:
    return {"cache": (str(made / "cache"),), **options}


def fresh(seed: int = 3) -> dict[str, torch.Tensor]:
    samples = open_viewed("digits", "train").samples
    return open_network(STUDENT, classes=10, statistics=samples.statistics, seed=seed).model.state_dict()


# Two stages.


def test_stage_1_lowers_the_hint_error_and_touches_nothing_above_the_guided_layer(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[dict[str, Any]] = []
    save = learner.save_checkpoint
    monkeypatch.setattr(
        learner, "save_checkpoint", lambda folder, state: (states.append(_copied(state)), save(folder, state))
    )
    fit(tmp_path / "run", **cached(made, hint=HINT, hint_epochs=3, epochs=2, optimizer="adamw", lr=2e-3))
    before, after = fresh(), states[2]["student"]
    for name, value in before.items():
        moved = not torch.equal(value, after[f"model.{name}"])
        assert moved == name.startswith("layer1"), name  # parameters, running means and counters alike
    found = lines(tmp_path / "run")
    assert [line["stage"] for line in found] == [1, 1, 1, 2, 2]
    assert [line["epoch"] for line in found] == [1, 2, 3, 4, 5]
    errors = [line["hint_loss"] for line in found[:3]]
    assert errors[2] < errors[1] < errors[0]
    for line in found[:3]:
        assert line["soft_loss"] is None
        assert line["hard_loss"] is None
        assert line["test_top1"] is None
        assert line["loss"] == line["hint_loss"]
    for line in found[3:]:
        assert line["soft_loss"] > 0
        assert line["hint_loss"] == 0
        assert "hint_losses" not in line
        assert line["test_top1"] is not None
    # Each stage has a course of the learning rate of its own, which begins with a warm-up.
    assert found[3]["lr"] == found[0]["lr"]


def test_stage_2_starts_from_the_weights_of_stage_1(made: Path, tmp_path: Path) -> None:
    fit(tmp_path / "run", **cached(made, hint=HINT, hint_epochs=2, epochs=1, lr=1e-12, weight_decay=0.0))
    ended = weights(tmp_path / "run")
    assert all(
        torch.allclose(ended[name], value)
        for name, value in fresh().items()
        if "running" not in name and "num_" not in name
    )
    fit(tmp_path / "long", **cached(made, hint=HINT, hint_epochs=2, epochs=1))
    regressors = weights(tmp_path / "long", "regressors.safetensors")
    assert set(regressors) == {
        f"by_term.0.by_layer.0.regressor.{name}"
        for name in (
            "conv.weight",
            "norm.weight",
            "norm.bias",
            "norm.running_mean",
            "norm.running_var",
            "norm.num_batches_tracked",
        )
    }


def test_a_layer_that_runs_twice_is_the_last_of_its_runs_in_stage_1_too(made: Path, tmp_path: Path) -> None:
    file = tmp_path / "twice.py"
    file.write_text(
        "import torch\n"
        "from torch import nn\n"
        "class Twice(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a, self.b = nn.Conv2d(1, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, 1, 1)\n"
        "        self.relu, self.fc = nn.ReLU(), nn.Linear(6, 10)\n"
        "    def forward(self, x):\n"
        "        return self.fc(self.relu(self.b(self.relu(self.a(x)))).mean((2, 3)))\n"
        "def net():\n"
        "    return Twice()\n"
    )
    out = tmp_path / "run"
    arguments = [
        "--quiet",
        "train",
        "--student",
        f"{file}:net",
        "--cache",
        made / "cache",
        "--out",
        out,
        "--workers",
        "0",
    ]
    arguments += ["--hint", "fitnet:teacher=layer1,student=relu", "--hint-epochs", "1", "--epochs", "1", "--seed", "4"]
    assert command(*arguments, "--alpha", "0", "--beta", "0") == 0  # so that stage 2 changes nothing
    samples = open_viewed("digits", "train").samples
    before = open_network(f"{file}:net", classes=10, statistics=samples.statistics, seed=4).model.state_dict()
    after = weights(out)
    assert not torch.equal(before["b.weight"], after["b.weight"])


# Held-out rows.


def test_held_out_rows_are_never_trained_on_and_choose_the_epoch(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[int] = set()
    labels: list[torch.Tensor] = []
    tested: list[int] = []
    epoch_of = loop.Stream.epoch
    kept: list[dict[str, torch.Tensor]] = []
    save = learner.save_checkpoint

    def watched(self: Any, epoch: int) -> Any:
        for batch in epoch_of(self, epoch):
            seen.update(batch.rows.tolist())
            labels.append(batch.visible)
            yield batch

    monkeypatch.setattr(loop.Stream, "epoch", watched)
    monkeypatch.setattr(
        learner, "save_checkpoint", lambda folder, state: (kept.append(_copied(state)["student"]), save(folder, state))
    )
    monkeypatch.setattr("softcache.stages._material.evaluator", lambda *a, **k: lambda judged: [tested.append(1)])
    done = fit(tmp_path / "run", **cached(made, val_fraction=0.25, epochs=4, lr=0.03, seed=11))
    samples = open_viewed("digits", "train").samples
    held = holdout_rows(samples.labels, 0.25, 0)
    assert seen == set(np.flatnonzero(~held).tolist())
    assert tested == [1]  # the test split is looked at once
    found = lines(tmp_path / "run")
    assert [line["test_top1"] for line in found] == [None] * 4
    accuracies = [line["val_top1"] for line in found]
    assert done.best_epoch == 1 + int(np.argmax(accuracies))
    assert done.val == max(accuracies)
    chosen = {name.removeprefix("model."): value for name, value in kept[done.best_epoch - 1].items()}
    assert same(chosen, weights(tmp_path / "run"))
    assert config(tmp_path / "run")["held_out_rows"] == int(held.sum())


def test_validation_accuracy_is_that_of_the_held_out_rows(made: Path, tmp_path: Path) -> None:
    done = fit(tmp_path / "run", **cached(made, val_fraction=0.25, epochs=3, lr=0.01))
    viewed = open_viewed("digits", "train", augment="none", size=8)
    held = np.flatnonzero(holdout_rows(viewed.samples.labels, 0.25, 0))
    network = open_network(str(tmp_path / "run"), classes=10).eval()
    with torch.no_grad():
        answers = network(viewed.clean(held)).argmax(1).numpy()
    assert done.val == pytest.approx(float((answers == viewed.samples.labels[held]).mean()))
    assert done.test is not None
    assert done.test.top1 == evaluate(str(tmp_path / "run"))["top1"]


def test_no_held_out_row_is_mixed_into_another(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed = make_cache(tmp_path / "mixed", made / "teacher", augment="cutmix:alpha=1")
    keys: list[tuple[int, int]] = []
    epoch_of = loop.Stream.epoch

    def watched(self: Any, epoch: int) -> Any:
        for batch in epoch_of(self, epoch):
            keys.extend((row, epoch % 2) for row in batch.rows.tolist())
            yield batch

    monkeypatch.setattr(loop.Stream, "epoch", watched)
    fit(tmp_path / "run", cache=(str(mixed),), val_fraction=0.3)
    viewed = open_viewed("digits", "train", augment="cutmix:alpha=1", size=8)
    held = holdout_rows(viewed.samples.labels, 0.3, 0)
    for view in (0, 1):
        rows = np.array([row for row, of in keys if of == view])
        mixing = viewed.mixing(rows, view)
        assert mixing is not None
        assert not held[rows].any()
        assert not held[mixing[0]].any()
        assert len(rows) == int((~held).sum())


# Where the student starts.


def test_a_start_from_the_teacher_copies_what_fits(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ["--workers", "0", "--epochs", "1", "--lr", "1e-12", "--weight-decay", "0", "--teacher", made / "teacher"]
    arguments = ["train", "--cache", made / "cache", "--out", tmp_path / "run", *quick, "--init", "teacher"]
    assert command(*arguments, "--student", TEACHER) == 0
    theirs, ours = weights(made / "teacher", "teacher.safetensors"), weights(tmp_path / "run")
    parameters = [name for name in theirs if "running" not in name and "num_" not in name]
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-9) for name in parameters)
    assert "14 of 14 tensors copied" in capsys.readouterr().err
    start = config(tmp_path / "run")["start"]
    assert sorted(start["copied"]) == sorted(theirs)
    assert start["left"] == {}
    assert re.fullmatch("[0-9a-f]{64}", start["teacher_sha256"])


def test_picked_layers_are_copied_from_where_they_are_asked_for(made: Path, tmp_path: Path) -> None:
    wide = open_network(TEACHER, classes=10, normalize="none", seed=1).model
    other = open_network(TEACHER, classes=10, normalize="none", seed=2).model
    before = {name: value.clone() for name, value in other.state_dict().items()}
    copied = copy_parameters(other, wide, {"layer2": "layer2", "fc": "fc"})
    after, source = other.state_dict(), wide.state_dict()
    for name, value in after.items():
        expected = source if name.startswith(("layer2.", "fc.")) else before
        assert torch.equal(value, expected[name]), name
    assert copied.left == {}
    narrow = student(10)
    copied = copy_parameters(narrow, wide, {})
    assert set(copied.names) == {"fc.bias", "layer1.1.num_batches_tracked", "layer2.1.num_batches_tracked"}
    assert copied.left["fc.weight"] == "10×12 for 10×8"
    with pytest.raises(ModelError, match="no layer 'layer7'"):
        copy_parameters(narrow, wide, {"layer1": "layer7"})
    with pytest.raises(ModelError, match="nothing of the teacher fits"):
        copy_parameters(narrow, wide, {"layer1.0": "layer2.0"})


def test_a_teacher_that_is_not_the_caches_is_refused_for_its_classifier(made: Path, tmp_path: Path) -> None:
    make_teacher(tmp_path / "other", seed=9)
    hint = ("simkd:teacher=layer2,student=layer2",)
    with pytest.raises(ModelError, match="was made with"):
        fit(tmp_path / "run", **cached(made, hint=hint, teacher=str(tmp_path / "other")))
    assert not (tmp_path / "run").exists()


def test_a_run_is_a_teacher_of_the_next_generation(made: Path, tmp_path: Path) -> None:
    fit(
        tmp_path / "first",
        **cached(made, hint=("simkd:teacher=layer2,student=layer2",), teacher=str(made / "teacher")),
    )
    again = make_cache(tmp_path / "again", tmp_path / "first", views=1, hint=("projector", "classifier:in"))
    done = fit(tmp_path / "second", cache=(str(again),), hint=("at:teacher=projector,student=layer2",))
    assert done.test is not None


def test_frozen_parameters_and_their_running_means_stay(made: Path, tmp_path: Path) -> None:
    fit(tmp_path / "run", **cached(made, freeze=("layer1.*", "fc.bias"), weight_decay=0.1))
    ours = weights(tmp_path / "run")
    for name, value in fresh().items():
        stays = name.startswith("layer1.") or name == "fc.bias"
        assert torch.equal(ours[name], value) == stays, name
    assert config(tmp_path / "run")["start"]["frozen"] == [
        "layer1.0.weight",
        "layer1.1.weight",
        "layer1.1.bias",
        "fc.bias",
    ]


def test_gradients_are_bounded_over_student_and_regressors(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[float] = []
    step = torch.optim.SGD.step

    def watched(self: Any, *arguments: Any) -> Any:
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients]))))
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", watched)
    fit(tmp_path / "run", **cached(made, hint=HINT, optimizer="sgd", lr=1e-3, clip_grad=0.01, epochs=1))
    assert norms
    assert max(norms) == pytest.approx(0.01, rel=1e-3)


def test_the_last_step_of_an_epoch_is_the_mean_of_its_own_batches(made: Path, tmp_path: Path) -> None:
    steps = -(-1438 // 128)
    for accumulate in (steps, 100):
        fit(tmp_path / str(accumulate), **cached(made, accumulate=accumulate, optimizer="sgd", lr=0.05, epochs=1))
    assert same(weights(tmp_path / str(steps)), weights(tmp_path / "100"))


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    return {"student": {name: value.detach().cpu().clone() for name, value in state["student"].items()}}


def test_writing_a_network_again_gives_the_same_file(made: Path, tmp_path: Path) -> None:
    network = open_network(str(made / "teacher"), classes=10)
    save_network(network, tmp_path, "copy.safetensors")
    assert (tmp_path / "copy.safetensors").read_bytes() == (made / "teacher" / "teacher.safetensors").read_bytes()
