"""An interrupted training goes on to the same bits as an undisturbed one, whatever it is trained towards."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
from harness_train import HINTS, TEACHER, fit, lines, make_cache, make_teacher, same, weights

from softcache.config.given import remember_folder
from softcache.config.record import read_record
from softcache.errors import CacheError, NotNamedError
from softcache.stages.train import train
from softcache.training import learner

TIMES = ("epoch_s", "data_s", "eval_s", "teacher_s")
ASKED: dict[str, dict[str, Any]] = {
    "plain": {"T": "8:2:linear", "alpha": "1:0.5:cosine", "clip_grad": 0.5, "accumulate": 2, "label_smoothing": 0.1},
    "hints": {
        "hint": (
            "fitnet:teacher=layer2,student=layer1",
            "crd:teacher=fc:in,student=fc:in,negatives=32",
            "vid:teacher=layer1,student=layer1",
        )
    },
    "stages": {"hint_epochs": 2, "hint": ("fitnet:teacher=layer1,student=layer1",), "loss": ("dkd", "mse:weight=2")},
    "ensemble": {"caches": ("a", "b"), "combine": "probs", "teacher_weight": (0.7, 0.3), "loss": ("kl", "dist")},
    "mean": {"targets": "mean"},
    "both": {"targets": "both", "fresh_share": "0.2:0.8:linear", "caches": ("a", "b"), "accumulate": 2},
    "turns": {"targets": "both", "fresh_share": "0:1:alternate", "val_fraction": 0.2},
    "held": {"val_fraction": 0.2, "label_fraction": 0.3},
    "mixed": {"caches": ("mixed",), "val_fraction": 0.1},
    "start": {"init_map": ("fc=fc",), "freeze": ("layer1.0.*",), "optimizer": "sgd", "lr": 0.05},
    "simkd": {"hint": ("simkd:teacher=layer2,student=layer2",), "alpha": "0", "beta": "0"},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    make_teacher(folder / "teacher")
    make_teacher(folder / "teacher_b", seed=2)
    make_cache(folder / "a", folder / "teacher", hint=HINTS)
    make_cache(folder / "b", folder / "teacher_b")
    make_cache(folder / "mixed", folder / "teacher", augment="crop:pad=1+mixup:alpha=0.5")
    return folder


class Stopped(Exception):
    pass


def interrupted(monkeypatch: pytest.MonkeyPatch, epochs: int, *, saved: bool) -> None:
    """Ends a training with its n-th epoch: when all but the checkpoint is written, or with that too."""
    count, save = [0], learner.save_checkpoint

    def stopping(folder: Path, state: dict[str, Any]) -> None:
        count[0] += 1
        if count[0] < epochs or saved:
            save(folder, state)
        if count[0] == epochs:
            raise Stopped

    monkeypatch.setattr(learner, "save_checkpoint", stopping)


def timeless(folder: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines(folder)]


# All moments for those that have most to keep: within the first epochs, between stages, and with lines written twice.
MOMENTS = [(name, 2, True) for name in ASKED] + [
    (name, *moment) for name in ("hints", "stages") for moment in ((1, True), (3, True), (3, False))
]


@pytest.mark.parametrize(("name", "after", "saved"), MOMENTS)
def test_resumed_equals_undisturbed(
    name: str, after: int, saved: bool, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = dict(ASKED[name])
    caches = tuple(str(made / cache) for cache in asked.pop("caches", ("a",)))
    if name in ("start", "simkd"):
        asked["teacher"] = str(made / "teacher")
    options: dict[str, Any] = {"cache": caches, "epochs": 2 if "hint_epochs" in asked else 3, "log_every": 5, **asked}
    fit(tmp_path / "whole", **options)
    with monkeypatch.context() as patched:
        interrupted(patched, after, saved=saved)
        with pytest.raises(Stopped):
            fit(tmp_path / "parts", **options)
    assert not (tmp_path / "parts" / "student.safetensors").exists()
    done = train(resume=tmp_path / "parts")
    assert len(done.lines) == len(lines(tmp_path / "whole"))
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert timeless(tmp_path / "whole") == timeless(tmp_path / "parts")
    steps = lines(tmp_path / "parts", "steps.jsonl")
    assert steps == lines(tmp_path / "whole", "steps.jsonl")
    assert len({step["step"] for step in steps}) == len(steps) > 0
    if "hints" in asked:
        regressors = "regressors.safetensors"
        assert same(weights(tmp_path / "whole", regressors), weights(tmp_path / "parts", regressors))
    if "val_fraction" in asked:
        assert not (tmp_path / "parts" / "best.safetensors").exists()


def test_half_a_line_of_steps_is_dropped(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"cache": (str(made / "a"),), "log_every": 1}
    with monkeypatch.context() as patched:
        interrupted(patched, 1, saved=True)
        with pytest.raises(Stopped):
            fit(tmp_path / "run", **options)
    with open(tmp_path / "run" / "steps.jsonl", "a") as file:
        file.write('{"step": 1')
    train(resume=tmp_path / "run")
    steps = [line["step"] for line in lines(tmp_path / "run", "steps.jsonl")]
    assert steps == list(range(len(steps)))


def test_a_finished_run_stays_as_it_is(made: Path, tmp_path: Path) -> None:
    first = fit(tmp_path / "run", cache=(str(made / "a"),), val_fraction=0.1)
    before = weights(tmp_path / "run")
    again = train(resume=tmp_path / "run")
    assert same(before, weights(tmp_path / "run"))
    assert (again.test, again.val, again.best_epoch) == (first.test, first.val, first.best_epoch)


def test_a_run_resumes_with_the_cache_that_it_began_with(made: Path, tmp_path: Path) -> None:
    fit(tmp_path / "run", cache=(str(made / "a"),))
    record = read_record(tmp_path / "run")
    options = dataclasses.replace(record.options, cache=(str(made / "b"),))
    dataclasses.replace(record, options=options).save(tmp_path / "run")
    # What the user gave was for another description.
    with pytest.raises(NotNamedError, match=r"softcache --allow .*py:student --allow .*/b"):
        train(resume=tmp_path / "run")
    remember_folder(tmp_path / "run", options, options.student)
    with pytest.raises(CacheError, match=r"is not the cache that .* began with"):
        train(resume=tmp_path / "run")


def test_a_start_from_the_teacher_is_not_made_twice(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    shutil.copytree(made / "teacher", gone)
    remember_folder(gone, read_record(gone).options, TEACHER)
    options: dict[str, Any] = {"cache": (str(made / "a"),), "init_map": ("fc=fc",), "teacher": str(gone)}
    with monkeypatch.context() as patched:
        interrupted(patched, 1, saved=True)
        with pytest.raises(Stopped):
            fit(tmp_path / "run", **options)
    began = read_record(tmp_path / "run").start
    shutil.rmtree(gone)
    train(resume=tmp_path / "run")
    assert read_record(tmp_path / "run").start == began
    assert began["copied"] == ["fc.bias"]
