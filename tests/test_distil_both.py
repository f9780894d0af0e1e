"""``--targets both``: trainings on recorded views and fresh ones side by side, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness_train import STUDENT, command, config, fit, lines, make_cache, make_teacher, same, weights

from softcache.config.data import open_data
from softcache.config.parsed import parse
from softcache.config.train import TrainConfig
from softcache.datasets._subset import holdout_rows
from softcache.errors import UsageError
from softcache.training import loop
from softcache.views._open import open_viewed


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("both")
    make_teacher(folder / "teacher")
    make_teacher(folder / "teacher_b", seed=2)
    make_cache(folder / "a", folder / "teacher", views=3, augment="crop:pad=1")
    make_cache(folder / "b", folder / "teacher_b", views=3, augment="crop:pad=1")
    return folder


def test_without_fresh_rows_it_is_a_training_on_matched_views_to_the_bit(made: Path, tmp_path: Path) -> None:
    common: dict[str, Any] = {"cache": (str(made / "a"),), "epochs": 4}
    fit(tmp_path / "matched", **common)
    fit(tmp_path / "none", **common, targets="both", fresh_share=0)
    fit(tmp_path / "half", **common, targets="both")
    assert same(weights(tmp_path / "matched"), weights(tmp_path / "none"))
    assert not same(weights(tmp_path / "matched"), weights(tmp_path / "half"))
    recorded = config(tmp_path / "half")
    assert (recorded["options"]["targets"], recorded["options"]["fresh_share"]) == ("both", 0.5)
    assert recorded["view_numbers"] == [0, 1, 2]


def test_memory_and_workers_have_no_say_in_the_student(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    common: dict[str, Any] = {"cache": (str(made / "a"), str(made / "b")), "targets": "both", "fresh_share": "0.7"}
    common |= {"shuffle": "block", "epochs": 3}
    fit(tmp_path / "resident", **common)
    fit(tmp_path / "workers", **common, resident="off")
    monkeypatch.setattr("softcache.stream.mean.memory_budget", lambda device: 0)
    capsys.readouterr()
    fit(tmp_path / "asked", **common)
    said = capsys.readouterr().err
    assert "3 views and fresh ones (share 0.7) with the mean over these" in said
    assert "targets read in blocks, ahead; those of fresh views averaged batch by batch" in said
    for other in ("workers", "asked"):
        assert same(weights(tmp_path / "resident"), weights(tmp_path / other))


def test_the_first_views_are_those_of_both_kinds(made: Path) -> None:
    asked = TrainConfig(STUDENT, cache=(str(made / "a"),), targets="both", views=2)
    data = open_data(parse(asked))
    assert data.views == data.averaged == (0, 1)
    assert data.recorded_views == [0, 1]


def test_held_out_rows_and_hidden_labels_stay_so(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []
    labelled: list[torch.Tensor] = []
    epoch_of = loop.Stream.epoch

    def watched(self: Any, epoch: int) -> Any:
        for batch in epoch_of(self, epoch):
            seen.append(batch.rows.cpu().numpy())
            labelled.append(batch.rows[batch.visible >= 0].cpu())
            yield batch

    monkeypatch.setattr(loop.Stream, "epoch", watched)
    asked = {"val_fraction": 0.25, "label_fraction": 0.1, "accumulate": 2, "fresh_share": "0:1:alternate"}
    fit(tmp_path / "run", cache=(str(made / "a"),), targets="both", epochs=2, **asked)
    labels = open_viewed("digits", "train").samples.labels
    train = np.flatnonzero(~holdout_rows(labels, 0.25, 0))
    assert np.array_equal(np.sort(np.concatenate(seen)), np.sort(np.tile(train, 2)))
    assert [line["samples"] for line in lines(tmp_path / "run")] == [len(train)] * 2
    assert 0.08 * len(train) < len(torch.cat(labelled).unique()) < 0.12 * len(train)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--fresh-share", "0.3"], "--fresh-share 0.3 goes with --targets both, is matched"),
        (["--targets", "mean", "--fresh-share", "0.3"], "--fresh-share 0.3 goes with --targets both, is mean"),
        (["--targets", "both", "--fresh-share", "1.5"], "--fresh-share must be from 0 to 1, is 1.5"),
        (["--targets", "both", "--fresh-share=-1:0:linear"], "--fresh-share must be from 0 to 1, is -1:0:linear"),
        (["--targets", "both", "--fresh-share", "0:1"], "--fresh-share: '0:1' is not a number, START:END:linear"),
        (["--targets", "both", "--hint", "at:teacher=layer1,student=layer1"], "--targets both has .* no hints"),
        (["--targets", "both", "--views-per-image", "2"], "both with --views-per-image 2: .* leave out"),
        (["--targets", "both", "--alpha", "0"], "--targets both averages what a cache recorded"),
    ],
)
def test_what_cant_be_is_refused_in_one_line(
    options: list[str], says: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--quiet", "train", "--student", STUDENT, "--cache", made / "a", "--out", tmp_path / "run"]
    assert command(*common, *options) == 2
    assert re.search(says, " ".join(capsys.readouterr().err.split()))
    assert not (tmp_path / "run").exists()


def test_a_live_teacher_and_mixed_views_are_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--targets both averages what a cache recorded"):
        fit(tmp_path / "live", online=True, teacher=str(made / "teacher"), targets="both")
    mixed = make_cache(tmp_path / "mixed", made / "teacher", augment="mixup:alpha=0.2", views=1)
    with pytest.raises(UsageError, match=r"--targets both: mixup.* mixes a row with another in each view"):
        fit(tmp_path / "run", cache=(str(mixed),), targets="both")
