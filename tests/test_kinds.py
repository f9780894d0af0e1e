"""Labels and outputs that are no classes: from the data through the cache to a student and its scores."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from harness_train import command, config, lines, same, weights

from softcache.cache.reader import Cache
from softcache.datasets._open import open_samples
from softcache.datasets._samples import Samples
from softcache.errors import CacheError, DatasetError, UsageError
from softcache.losses._ensemble import average_probabilities
from softcache.stages.dump import dump
from softcache.stages.eval import evaluate
from softcache.stages.keys import Keys
from softcache.stages.teach import teach
from softcache.stages.train import train
from softcache.stages.verify import verify
from softcache.training.rows import choose_rows
from softcache.training.task_loss import hard_loss

ROWS, FEATURES, OUTPUTS = 240, 6, 3
MODELS = """
import numpy as np
import torch
from torch import nn


class Several(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 24), nn.ReLU())
        self.embed = nn.Linear(24, 5)
        self.head = nn.Linear(24, outputs)

    def forward(self, x):
        hidden = self.body(x)
        return {"logits": self.head(hidden), "embedding": self.embed(hidden)}


def several(num_classes):
    return Several(num_classes)


def student(num_classes):
    return nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, num_classes))


def wide(num_classes):
    return student(7)


def truth(num_classes=3):
    '''A teacher that knows: three numbers, or the logits of three questions.'''

    def answer(features):
        logits = features[:, :3] * 4 + features[:, 3:] * 2
        return {"logits": logits[:, :num_classes], "embedding": np.tanh(features[:, :5])}

    return answer


def bare(num_classes=3):
    return lambda features: np.tanh(features[:, :5])


def average(num_classes=3):
    kept = np.load("average.npz")
    known = {row.tobytes(): said for row, said in zip(kept["features"], kept["logits"])}
    return lambda features: np.stack([known[row.tobytes()] for row in features])


def forest(num_classes=3):
    from sklearn.ensemble import RandomForestClassifier

    features, labels = np.load("classes/train_features.npy"), np.load("classes/train_labels.npy")
    fitted = RandomForestClassifier(20, random_state=0).fit(features, labels)

    class Forest:
        fingerprint = "20 trees"

        def __call__(self, features):
            return np.log(fitted.predict_proba(features).clip(1e-7)).astype(np.float32)

    return Forest()
"""
FIT: dict[str, Any] = {
    "device": "cpu", "epochs": 12, "batch_size": 32, "optimizer": "adamw", "lr": 0.01, "weight_decay": 0.0, "warmup": 0,
}  # fmt: skip


def questions(scores: np.ndarray) -> np.ndarray:
    """(N, 3) uint8: whether each of three numbers is above 0; some answers are unknown."""
    labels = (scores > 0).astype(np.uint8)
    labels[::5, 1] = 255
    return labels


def numbers(scores: np.ndarray) -> np.ndarray:
    labels = scores.astype(np.float32)
    labels[::5, 1] = np.nan
    return labels


LABELS = {
    "binary": questions,
    "values": numbers,
    "classes": lambda scores: scores.argmax(1),
    "number": lambda scores: scores[:, 0].astype(np.float32),
    "none": None,
}


@pytest.fixture
def data(here: Path) -> Path:
    """The same 240 rows with labels of every kind, and the models beside them."""
    for kind, make in LABELS.items():
        (here / kind).mkdir()
        for seed, (split, count) in enumerate((("train", ROWS), ("test", 90))):
            features = np.random.default_rng(seed).normal(size=(count, FEATURES)).astype(np.float32)
            np.save(here / kind / f"{split}_features.npy", features)
            if make is not None:
                np.save(here / kind / f"{split}_labels.npy", make(features[:, :3] * 4 + features[:, 3:] * 2))
    (here / "models.py").write_text(MODELS)
    return here


def cached(kind: str, **options: Any) -> Cache:
    dump("models.py:truth", dataset=f"arrays:{kind}", out="cache", codec="fp32", device="cpu", **options)
    return Cache("cache")


def learn(student: str = "several", **options: Any) -> Any:
    settings = {**FIT, "cache": "cache", "out": "run", "views": 1, **options}
    return train(f"models.py:{student}", **settings)


# Labels.


def test_arrays_say_the_kind_of_their_labels_by_dtype_and_shape(data: Path) -> None:
    found = {kind: open_samples(f"arrays:{kind}", "train") for kind in LABELS}
    assert {kind: samples.label_kind for kind, samples in found.items()} == {
        "binary": "binary", "values": "values", "number": "values", "classes": "classes", "none": "classes",
    }  # fmt: skip
    assert {kind: len(samples.classes) for kind, samples in found.items()} == {
        "binary": 3, "values": 3, "number": 1, "classes": 3, "none": 0,
    }  # fmt: skip
    (data / "binary" / "classes.txt").write_text("sunny\nwarm\ndry\n")
    assert open_samples("arrays:binary", "train").classes == ("sunny", "warm", "dry")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.full((ROWS, 3), 7, np.uint8), r"label 7 of row 0, output 0 is not 0, 1 or 255 \(no label\)"),
        (np.full((ROWS, 3), np.inf, np.float32), "of row 0 is infinite; NaN is a row without one"),
        (np.zeros((ROWS, 3), np.float64), "whole numbers, found float64|expected labels of shape"),
        (np.zeros((ROWS - 1, 3), np.uint8), r"expected labels of shape \(240, K\) for 240 rows, found \(239, 3\)"),
        (np.zeros((ROWS, 4), np.uint8), r"train_labels are binary \(4,\), test_labels binary \(3,\)"),
        (np.zeros(ROWS, np.int64), r"train_labels are classes \(\), test_labels binary \(3,\)"),
    ],
)
def test_labels_that_are_of_no_kind_are_refused(data: Path, labels: np.ndarray, message: str) -> None:
    np.save(data / "binary" / "train_labels.npy", labels)
    with pytest.raises(DatasetError, match=message):
        open_samples("arrays:binary", "train")


@pytest.mark.parametrize("kind", ["binary", "values", "number", "classes"])
def test_a_cache_records_labels_of_every_kind(data: Path, kind: str) -> None:
    cache, samples = cached(kind), open_samples(f"arrays:{kind}", "train")
    assert np.array_equal(cache.labels, samples.labels, equal_nan=kind in ("values", "number"))
    assert cache.labels.dtype == samples.labels.dtype
    with h5py.File("cache/rows.h5") as file:  # what another program sees
        assert file["label"].dtype == {"binary": "u1", "values": "f4", "number": "f4", "classes": "i4"}[kind]
        assert file["label"].shape == samples.labels.shape
    assert cache.manifest.state.columns["logits"].kind == {"number": "values"}.get(kind, kind)
    assert verify("cache").ok
    (batch,) = Keys("cache", f"arrays:{kind}", view=0).sampler(ROWS)
    keys = Keys("cache", f"arrays:{kind}")
    made = keys.__getitems__(batch)
    assert np.array_equal(
        made.labels.numpy(), samples.labels[[row for row, _ in batch]], equal_nan=made.labels.is_floating_point()
    )


def test_labels_that_changed_are_told_by_the_names_of_outputs(data: Path) -> None:
    cached("binary")
    path = data / "binary" / "train_labels.npy"
    labels = np.load(path)
    labels[4] = [1, 0, 1]
    np.save(path, labels)
    with pytest.raises(CacheError, match=r"labels of 1 of 240 rows differ \(first row 4: .* now\)"):
        learn()
    assert learn(labels="cache").test is not None


def test_a_share_of_the_labels_is_a_share_of_the_rows(data: Path) -> None:
    for kind in ("binary", "values"):
        labels = open_samples(f"arrays:{kind}", "train").labels
        rows = choose_rows(labels, val_fraction=0.25, label_fraction=0.5, seed=0, labels_alone=False)
        known = (rows.visible != 255 if kind == "binary" else ~np.isnan(rows.visible)).any(1)
        assert (len(rows.held), known.sum(), len(rows.train)) == (60, 90, 180)
        assert not set(np.flatnonzero(known)) & set(rows.held)


# The task loss.


def test_the_task_loss_is_that_of_torch_over_the_labels_that_are_there() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    yes = torch.randint(0, 2, (5, 4), generator=generator, dtype=torch.uint8)
    yes[0] = 255
    yes[1, 2] = 255
    known = yes != 255
    wanted = F.binary_cross_entropy_with_logits(logits[known], yes[known].double())
    torch.testing.assert_close(hard_loss(logits, yes), wanted)
    smooth = yes[known].double() * 0.8 + 0.1
    torch.testing.assert_close(hard_loss(logits, yes, 0.2), F.binary_cross_entropy_with_logits(logits[known], smooth))
    values = torch.randn(5, 4, generator=generator)
    values[2, 1] = torch.nan
    there = ~values.isnan()
    torch.testing.assert_close(hard_loss(logits, values), F.mse_loss(logits[there], values[there].double()))
    one = torch.randn(5, generator=generator)
    torch.testing.assert_close(hard_loss(logits[:, :1], one), F.mse_loss(logits[:, 0], one.double()))


@pytest.mark.parametrize("labels", [torch.full((3, 2), 255, dtype=torch.uint8), torch.full((3, 2), torch.nan)])
def test_a_batch_without_labels_has_no_task_loss_but_a_gradient(labels: torch.Tensor) -> None:
    logits = torch.randn(3, 2, requires_grad=True)
    loss = hard_loss(logits, labels)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_the_task_loss_of_mixed_labels_is_that_of_their_mixture() -> None:
    logits, weight = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0.1, 0.4, 0.7, 1.0], dtype=torch.float64)
    own, partner = torch.randint(0, 2, (2, 4, 3), dtype=torch.uint8)
    mixture = weight[:, None] * own + (1 - weight[:, None]) * partner
    found = hard_loss(logits, own, mixed=(partner, weight))
    torch.testing.assert_close(found, F.binary_cross_entropy_with_logits(logits, mixture))


# Students.


@pytest.mark.parametrize(("kind", "loss", "leading"), [("binary", "binary_kl", "map"), ("values", "mse", "r2")])
def test_a_student_of_each_kind_learns_and_is_scored(data: Path, kind: str, loss: str, leading: str) -> None:
    cached(kind)
    run = learn("student", epochs=40)
    assert [entry["loss"] for entry in config(Path("run"))["losses"]] == [loss]
    last = lines(Path("run"))[-1]
    assert last[f"test_{leading}"] == getattr(run.test, leading) > 0.9
    assert last["hard_loss"] is not None
    found = evaluate("run", dataset=f"arrays:{kind}")
    assert found[leading] == pytest.approx(getattr(run.test, leading))
    assert config(Path("run"))["result"][f"test_{leading}"] == getattr(run.test, leading)
    assert command("eval", "run", "--dataset", f"arrays:{kind}") == 0
    alone = train("models.py:student", dataset=f"arrays:{kind}", alpha=0, out="alone", **{**FIT, "epochs": 40})
    assert getattr(alone.test, leading) > 0.8
    chosen = learn("student", val_fraction=0.2, out="chosen")
    found_by_epoch = [line[f"val_{leading}"] for line in lines(Path("chosen"))]
    assert (chosen.val, chosen.best_epoch) == (max(found_by_epoch), 1 + int(np.argmax(found_by_epoch)))


@pytest.mark.parametrize("kind", ["binary", "values", "number"])
def test_a_teacher_is_taught_on_labels_of_each_kind(data: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {**FIT, "epochs": 40, "dataset": f"arrays:{kind}", "out": "teacher"}
    taught = teach("models.py:student", **settings)
    leading = "map" if kind == "binary" else "r2"
    assert getattr(taught.test, leading) > 0.8
    again = teach("models.py:student", **settings)
    assert (again.kept, again.test, again.leading) == (True, taught.test, leading)


def test_cached_equals_online_to_the_bit_for_binary_outputs(data: Path) -> None:
    """A float64 teacher, rounded to float32, so that the batch it ran in doesn't show."""
    teach("models.py:student", dataset="arrays:binary", out="teacher", **FIT)
    dump("teacher", dataset="arrays:binary", out="cache", codec="fp32", dtype="float64", batch_size=50, device="cpu")
    assert Cache("cache").manifest.state.columns["logits"].kind == "binary"
    common = {**FIT, "epochs": 3, "loss": "binary_kl:T=2", "seed": 3, "log_every": 1, "dataset": "arrays:binary"}
    train("models.py:student", cache="cache", out="cached", **common)
    train("models.py:student", online=True, teacher="teacher", dtype="float64", views=1, out="live", **common)
    assert same(weights(Path("cached")), weights(Path("live")))
    assert Path("cached/steps.jsonl").read_text() == Path("live/steps.jsonl").read_text()
    train("models.py:student", cache="cache", out="other", **{**common, "loss": "mse"})
    assert not same(weights(Path("cached")), weights(Path("other")))


def test_several_outputs_are_learnt_each_with_its_loss(data: Path) -> None:
    cached("classes", output=("logits", "embedding"))
    run = learn(loss=("kl:T=1", "cosine:of=embedding,weight=2"), epochs=30)
    assert run.test.top1 > 0.9
    written = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert written[-1]["soft_loss"] < 0.3 * written[0]["soft_loss"]
    live = {**FIT, "epochs": 3, "loss": ("kl:T=1", "cosine:of=embedding,weight=2"), "dataset": "arrays:classes"}
    train("models.py:several", cache="cache", out="cached", **live)
    train("models.py:several", online=True, teacher="models.py:truth", views=1, out="live", **live)
    assert same(weights(Path("cached")), weights(Path("live")))


def test_an_embedding_alone_is_learnt_without_labels_and_logits(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    dump("models.py:bare", dataset="arrays:none", out="cache", codec="fp32", device="cpu", output=("embedding",))
    run = learn("student", loss="cosine:of=embedding", val_fraction=0.25, epochs=40)
    assert run.test is None
    assert config(Path("run"))["model"]["classes"] == 5, "as wide as the teacher's embedding"
    first, last = (lines(Path("run"))[at] for at in (0, -1))
    assert (last["hard_loss"], last["test_cosine"]) == (None, None)
    assert last["val_cosine"] > max(0.95, first["val_cosine"])
    assert (run.leading, run.val) == ("cosine", max(line["val_cosine"] for line in lines(Path("run"))))
    with pytest.raises(UsageError, match="has learnt embedding and no logits"):
        evaluate("run", dataset="arrays:classes")
    learn("student", loss="mse:of=embedding", out="plain")
    assert "nothing to compare with labels: --val-fraction 0.1 holds out rows" in caplog.text


def test_students_of_another_shape_are_refused_before_they_train(data: Path) -> None:
    cached("none", output=("embedding",))
    with pytest.raises(
        UsageError, match=r"the student's 'embedding' has shape \(7,\) for a sample, the teacher's \(5,\)"
    ):
        learn("wide", loss="cosine:of=embedding")
    assert not Path("run").exists()
    learn("wide", loss="rkd:of=embedding", epochs=1)  # relations have no width


def test_losses_of_another_kind_are_refused_by_name(data: Path) -> None:
    cached("binary", output=("logits", "embedding"))
    for loss, message in (
        (
            "kl",
            r"'kl' takes outputs of kind classes, and 'logits' of .*cache is of kind binary: .* binary_kl, mse",
        ),
        ("binary_kl:of=embedding", "is of kind values: losses that take it are cc, cosine"),
        ("dkd", "takes outputs of kind classes"),
    ):
        with pytest.raises(UsageError, match=message):
            learn(loss=loss)


# Ensembles.


def test_an_ensemble_of_a_network_and_a_forest_trains_one_student(data: Path) -> None:
    pytest.importorskip("sklearn")
    teach("models.py:student", dataset="arrays:classes", out="teacher", **{**FIT, "epochs": 30})
    for name, teacher in (("network", "teacher"), ("trees", "models.py:forest")):
        dump(teacher, dataset="arrays:classes", out=name, codec="fp32", device="cpu")
    both = {"cache": ("network", "trees"), "combine": "probs", "loss": "kl:T=1", "alpha": 1, "beta": 0, "epochs": 40}
    run = learn("student", **both)
    assert run.test.top1 > 0.8
    caches = [Cache("network"), Cache("trees")]
    said = [c.column("logits").decode(c.column("logits").gather(0, np.arange(ROWS))) for c in caches]
    mean = (said[0].softmax(1) + said[1].softmax(1)) / 2
    torch.testing.assert_close(average_probabilities(said, [1, 1], 1.0).softmax(1), mean)

    # A teacher that says the average itself trains the same student.
    features = np.load("classes/train_features.npy")
    np.savez("average.npz", features=features, logits=mean.log().numpy())
    dump("models.py:average", dataset="arrays:classes", out="average", codec="fp32", device="cpu")
    learn("student", **{**both, "cache": "average", "combine": "logits"}, out="one")
    for ours, theirs in zip(lines(Path("run")), lines(Path("one")), strict=True):
        assert ours["soft_loss"] == pytest.approx(theirs["soft_loss"], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(("kind", "combine"), [("binary", "logits"), ("binary", "probs"), ("values", "logits")])
def test_ensembles_of_other_kinds_average_outputs_or_probabilities(data: Path, kind: str, combine: str) -> None:
    cached(kind)
    dump("models.py:truth", dataset=f"arrays:{kind}", out="other", codec="fp32", device="cpu", batch_size=7)
    learn("student", out="one", epochs=2)
    learn("student", cache=("cache", "other"), combine=combine, out="two", epochs=2)
    for ours, theirs in zip(lines(Path("one")), lines(Path("two")), strict=True):
        assert ours["soft_loss"] == pytest.approx(theirs["soft_loss"], rel=1e-4)


def test_samples_of_a_users_own_may_have_labels_of_any_kind(data: Path) -> None:
    samples = open_samples("arrays:binary", "train")
    part = samples.subset(np.arange(5))
    assert isinstance(part, Samples)
    assert part.labels.shape == (5, 3)
    with pytest.raises(KeyError):
        dataclasses.replace(samples, labels=samples.labels.astype(np.int64))
