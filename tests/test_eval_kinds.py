"""``softcache eval`` of students of other kinds of outputs and inputs, beside teachers that are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from harness_ragged import asked, make_place

from softcache.cache.reader import Cache
from softcache.errors import DatasetError, UsageError
from softcache.stages.dump import dump
from softcache.stages.eval import evaluate
from softcache.stages.train import train

MODELS = """
import numpy as np
from torch import nn


def student(num_classes):
    return nn.Linear(4, num_classes)


def truth(num_classes=3):
    return lambda features: 2 * features[:, :3]
"""
FIT: dict[str, Any] = {"device": "cpu", "epochs": 2, "batch_size": 32, "optimizer": "adamw", "lr": 0.01, "warmup": 0}
ROWS = {"train": 120, "test": 50}


@pytest.fixture
def tables(here: Path) -> Path:
    """A table with labels of each kind, of a teacher that says twice its first three numbers."""
    for kind in ("binary", "values", "classes", "none"):
        (here / kind).mkdir()
        for seed, (split, rows) in enumerate(ROWS.items()):
            features = np.random.default_rng(seed).normal(size=(rows, 4)).astype(np.float32)
            np.save(here / kind / f"{split}_features.npy", features)
            scores = features[:, :3] + 0.1
            if kind != "none":
                labels = {
                    "binary": (scores > 0).astype(np.uint8),
                    "values": scores,
                    "classes": scores.argmax(1),
                }[kind]
                np.save(here / kind / f"{split}_labels.npy", labels)
    (here / "models.py").write_text(MODELS)
    return here


def learnt(kind: str, **options: Any) -> dict[str, Any]:
    dump("models.py:truth", dataset=f"arrays:{kind}", out="cache", codec="fp32", device="cpu")
    train("models.py:student", dataset=f"arrays:{kind}", cache="cache", out="run", **{**FIT, **options})
    return evaluate("run")


def said(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What student and teacher say of the test split."""
    from safetensors.torch import load_file

    train_features, test = (torch.from_numpy(np.load(f"{kind}/{split}_features.npy")) for split in ROWS)
    state = load_file("run/student.safetensors")
    standardized = (test - train_features.mean(0)) / train_features.std(0, correction=0)
    return standardized @ state["weight"].T + state["bias"], 2 * test[:, :3]


def test_yes_or_no(tables: Path) -> None:
    found = learnt("binary", loss="binary_kl:T=2")
    ours, theirs = said("binary")
    assert found["agreement"] == pytest.approx(((ours > 0) == (theirs > 0)).float().mean().item())
    for name, T in (("kl", 1.0), ("kl_T", 2.0)):
        p, q = ((z.double() / T).sigmoid() for z in (theirs, ours))
        each = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
        assert found[name] == pytest.approx(each.mean().item(), rel=1e-4)
    assert found["teacher"]["map"] > 0.9
    assert (found["teacher"]["parameters"], found["teacher"]["flops"]) == (None, None), "it is a function"
    assert (found["parameters"], found["flops"]) == (15, 24)
    with pytest.raises(UsageError, match="--per-class is for labels that are one class a row"):
        evaluate("run", per_class=True)


def test_values(tables: Path) -> None:
    found = learnt("values")
    ours, theirs = said("values")
    assert found["teacher_mse"] == pytest.approx(F.mse_loss(ours, theirs).item(), rel=1e-4)
    assert found["teacher_cosine"] == pytest.approx(F.cosine_similarity(ours, theirs).mean().item(), rel=1e-4)
    missed = (ours - theirs).square().sum(0) / (theirs - theirs.mean(0)).square().sum(0)
    assert found["teacher_r2"] == pytest.approx((1 - missed).mean().item(), rel=1e-4)
    assert "agreement" not in found


def test_a_split_without_labels_is_compared_with_the_teacher_alone(tables: Path) -> None:
    learnt("classes", loss="kl")
    found = evaluate("run", dataset="arrays:none", teacher="models.py:truth")
    ours, theirs = said("classes")
    assert found["agreement"] == pytest.approx((ours.argmax(1) == theirs.argmax(1)).float().mean().item())
    assert "top1" not in found
    with pytest.raises(DatasetError, match="has no labels to compare with"):
        evaluate("run", dataset="arrays:none", compare=False)
    with pytest.raises(UsageError, match="--per-class needs labels"):
        evaluate("run", dataset="arrays:none", teacher="models.py:truth", per_class=True)


def test_a_table_by_its_cache(tables: Path) -> None:
    live = learnt("classes", loss="kl:T=2")
    dump(
        "models.py:truth", dataset="arrays:classes", out="of-test", split="test", codec="fp32", device="cpu",
        augment="none",
    )  # fmt: skip
    cached = evaluate("run", cache="of-test")
    for name in ("top1", "agreement", "kl", "kl_T", "T"):
        assert cached[name] == pytest.approx(live[name], rel=1e-6)


def test_rows_that_have_lengths_of_their_own(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    dump(**asked(place, place / "cache", output=("logits",), codec="fp32"))
    train(
        f"{place / 'models.py'}:learner", dataset=f"arrays:{place}", cache=place / "cache", out=place / "run",
        loss="kl:T=2", **{**FIT, "epochs": 1, "batch_size": 16},
    )  # fmt: skip
    teacher = {"teacher": f"{place / 'models.py'}:words", "teacher_weights": str(place / "t.pt")}
    live = evaluate(str(place / "run"), **teacher)
    dump(**asked(place, place / "of-test", output=("logits",), codec="fp32", split="test"))
    cached = evaluate(str(place / "run"), cache=str(place / "of-test"))
    assert Cache(place / "of-test").manifest.identity.dataset.split == "test"
    for name in ("top1", "agreement", "kl", "kl_T", "parameters", "flops"):
        assert cached[name] == pytest.approx(live[name], rel=1e-5)
    assert live["flops"] > 0


def test_outputs_of_places_are_refused(tmp_path: Path) -> None:
    from softcache.errors import ModelError

    place = make_place(tmp_path)
    named = {"weights": str(place / "t.pt"), "dataset": f"arrays:{place}"}
    with pytest.raises(ModelError, match="one vector a sample is evaluated"):
        evaluate(f"{place / 'models.py'}:tokens", **named)
