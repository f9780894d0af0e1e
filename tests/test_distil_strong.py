"""``--strong-cache``: each row of a batch in a weak and a strong view, each with the targets of its own cache."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness_cache import make_cache as random_cache
from harness_train import STUDENT, command, config, fit, lines, make_cache, make_teacher, same, weights

from softcache.cache.reader import Cache
from softcache.config.train import TrainConfig
from softcache.errors import CacheError, PixelsError, UsageError
from softcache.models._open import open_network
from softcache.stages._cohort import train_cohort
from softcache.stages.train import Trained, train
from softcache.stream.batches import Stream
from softcache.stream.inputs import InputSource, ResidentInputs, WorkerInputs
from softcache.stream.paired import PairedInputs, PairedTargets
from softcache.stream.plan import Plan
from softcache.stream.targets import CachedTargets
from softcache.stream.windows import Windows
from softcache.training import learner, loop
from softcache.views._open import open_viewed
from softcache.views._viewed import ViewedDataset

CPU = torch.device("cpu")
BATCH, VIEWS = 48, 3
WINDOWS = Windows(64, 4)
WEAK, STRONG = "crop:pad=1", "crop:pad=1+flip+randaugment"
TIMES = ("epoch_s", "data_s", "eval_s", "teacher_s")


# Batches.


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[ViewedDataset, Cache, list[np.ndarray]]]:
    """The weak and the strong views of digits, each with a cache and its logits (N, C) in each view."""
    found = []
    for name, recipe in (("weak", WEAK), ("strong", STRONG)):
        viewed = open_viewed("digits", "train", size=8, augment=recipe)
        folder = tmp_path_factory.mktemp(name) / "cache"
        logits = np.random.default_rng(len(name)).standard_normal((len(viewed), 10))
        cache, values = random_cache(
            folder, rows=len(viewed), shard_rows=64, views=VIEWS, viewed=viewed, codec="fp32", logits=logits
        )
        found.append((viewed, cache, values))
    return found


def stream_of(recorded: Any, keep: str = "held", *, strong: ViewedDataset | None = None, rows: int = 480) -> Stream:
    """Of the first rows."""
    (weak_viewed, weak, _), (strong_viewed, strong_cache, _) = recorded
    blocks = WINDOWS if keep == "blocks" else None
    held: dict[str, Any] = {"hold": keep == "held", "blocks": blocks}
    targets = [CachedTargets({"logits": [cache]}, {}, CPU, **held) for cache in (weak, strong_cache)]
    sources: list[InputSource] = [
        ResidentInputs(weak_viewed, CPU) if keep == "held" else WorkerInputs(weak_viewed, CPU, 0),
        WorkerInputs(strong or strong_viewed, CPU, 0),
    ]
    plan = Plan(np.arange(rows), BATCH, 7, tuple(range(VIEWS)), windows=blocks, per_image=2, paired=True)
    labels = weak_viewed.samples.labels
    return Stream(weak_viewed, PairedInputs(*sources), plan, CPU, visible=labels, teacher=PairedTargets(*targets))


@pytest.mark.parametrize("keep", ["held", "mapped", "blocks"])
def test_a_batch_has_each_row_in_both_views_with_the_targets_of_each(recorded: Any, keep: str) -> None:
    rows = np.arange(302)  # the last batch and the last block have fewer than the others
    stream = stream_of(recorded, keep, rows=len(rows))
    for pair in range(4):  # of epochs, which share an order
        seen = []
        for epoch in (2 * pair, 2 * pair + 1):
            for batch in stream.epoch(epoch):
                half = len(batch.rows) // 2
                weak_rows, strong_rows = batch.rows[:half].numpy(), batch.rows[half:].numpy()
                assert np.array_equal(weak_rows, strong_rows)
                seen.append(weak_rows)
                view = pair % VIEWS
                (logits,) = batch.targets.outputs["logits"]
                for at, (viewed, _, values) in zip((slice(half), slice(half, None)), recorded, strict=True):
                    assert torch.equal(batch.inputs[at], viewed.batch(weak_rows, view))
                    assert np.array_equal(logits[at].numpy(), values[view][weak_rows])
                    assert np.array_equal(batch.visible[at].numpy(), viewed.samples.labels[weak_rows])
        assert np.array_equal(np.sort(np.concatenate(seen)), rows)


def test_the_pixels_of_both_views_are_checked(recorded: Any) -> None:
    other = open_viewed("digits", "train", size=8, augment=STRONG, view_seed=1)
    with pytest.raises(PixelsError, match="in view 0 has other pixels than the teacher saw"):
        list(stream_of(recorded, strong=other).epoch(0))
    swapped = [recorded[1], recorded[0]]
    with pytest.raises(PixelsError):
        list(stream_of([(recorded[0][0], *swapped[0][1:]), (recorded[1][0], *swapped[1][1:])], "mapped").epoch(0))


def test_pairs_need_an_even_batch() -> None:
    with pytest.raises(UsageError, match="two views of each row in a batch: --batch-size 33 is odd"):
        Plan(np.arange(9), 33, 0, 2, per_image=2, paired=True)


# Trainings.


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("strong")
    make_teacher(folder / "teacher")
    make_teacher(folder / "teacher_b", seed=2)
    make_cache(folder / "weak", folder / "teacher", augment=WEAK, views=3, hint=("layer1",))
    make_cache(folder / "strong", folder / "teacher", augment=STRONG)
    make_cache(folder / "larger", folder / "teacher", augment=STRONG, size=10, views=1)
    make_cache(folder / "mixed", folder / "teacher", augment="mixup:alpha=0.5", views=1)
    make_cache(folder / "flipped", folder / "teacher_b", augment="flip", views=1)
    return folder


def asked(made: Path, **options: Any) -> dict[str, Any]:
    return {
        "cache": (str(made / "weak"),),
        "strong_cache": str(made / "strong"),
        "loss": ("mlkd",),
        "batch_size": 64,
        "epochs": 4,
        **options,
    }


def test_it_trains_on_the_views_that_both_caches_have(made: Path, tmp_path: Path) -> None:
    fit(tmp_path / "run", **asked(made))
    recorded = config(tmp_path / "run")
    assert recorded["view_numbers"] == [0, 1]
    assert [Path(entry["path"]).name for entry in recorded["caches"]] == ["weak", "strong"]
    assert recorded["options"]["strong_cache"] == str(made / "strong")
    found = lines(tmp_path / "run")
    rows = len(open_viewed("digits", "train"))
    assert [line["samples"] for line in found] == [2 * -(-rows // 2)] * 4  # half of the rows, twice
    assert found[0]["loss"] == pytest.approx(0.9 * found[0]["soft_loss"] + 0.1 * found[0]["hard_loss"], rel=1e-4)
    fit(tmp_path / "weak", cache=(str(made / "weak"),), loss=("mlkd",), batch_size=64, epochs=4, views=2)
    assert not same(weights(tmp_path / "run"), weights(tmp_path / "weak"))


def test_a_step_s_loss_is_that_of_the_two_views_together(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first batch of the first epoch: by hand, from the pixels and logits of both caches."""
    seen: list[Any] = []
    epoch_of = loop.Stream.epoch
    monkeypatch.setattr(loop.Stream, "epoch", lambda self, e: (seen.append((self, e)), epoch_of(self, e))[1])
    fit(tmp_path / "run", **asked(made, epochs=1, log_every=1, lr=1e-12, weight_decay=0.0, warmup=0))
    first = lines(tmp_path / "run", "steps.jsonl")[0]
    batch = next(iter(epoch_of(seen[0][0], 0)))
    readers = [Cache(made / name).column("logits") for name in ("weak", "strong")]
    teacher = torch.cat([reader.decode(reader.gather(0, batch.rows[:32].numpy())) for reader in readers]).double()
    assert torch.equal(batch.targets.outputs["logits"][0].double(), teacher)
    student = open_network(str(tmp_path / "run"), classes=10)  # which has learnt nothing at such a rate
    student.train()
    with torch.no_grad():
        ours = student(batch.inputs).double()
    total = 0.0
    for T in (2, 3, 4, 5, 6):
        p_s, p_t = torch.softmax(ours / T, 1), torch.softmax(teacher / T, 1)
        total += T**2 * (p_t * (p_t / p_s).log()).sum() / 64
        total += (p_t @ p_t.T - p_s @ p_s.T).square().sum() / 64 + (p_t.T @ p_t - p_s.T @ p_s).square().sum() / 10
    assert first["soft_loss"] == pytest.approx(float(total), rel=1e-4)


def test_memory_and_workers_have_no_say_in_the_student(made: Path, tmp_path: Path) -> None:
    flip = {"strong_cache": str(made / "flipped"), "views": 1}  # whose views are made by indexing too
    for number, more in enumerate(({}, flip)):
        common = asked(made, shuffle="block", epochs=4 - 2 * number, **more)
        fit(tmp_path / f"auto{number}", **common)
        fit(tmp_path / f"workers{number}", **{**common, "resident": "off", "workers": 1})
        assert same(weights(tmp_path / f"auto{number}"), weights(tmp_path / f"workers{number}"))


class Stopped(Exception):
    pass


def test_a_run_that_is_resumed_keeps_its_views_and_ends_with_the_same_bits(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strong = make_cache(tmp_path / "strong", made / "teacher", augment=STRONG)
    common = asked(made, strong_cache=str(strong), val_fraction=0.2)
    fit(tmp_path / "whole", **common)
    count, save = [0], learner.save_checkpoint

    def stopping(folder: Path, state: dict[str, Any]) -> None:
        save(folder, state)
        count[0] += 1
        if count[0] == 1:  # between two epochs that share an order
            raise Stopped

    with monkeypatch.context() as patched:
        patched.setattr(learner, "save_checkpoint", stopping)
        with pytest.raises(Stopped):
            fit(tmp_path / "parts", **common)
    make_cache(strong, made / "teacher", augment=STRONG, views=3)  # a view more, which the run didn't begin with
    train(TrainConfig(resume=str(tmp_path / "parts")))
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    runs = [
        [{key: value for key, value in line.items() if key not in TIMES} for line in lines(tmp_path / name)]
        for name in ("whole", "parts")
    ]
    assert runs[0] == runs[1]


def test_students_of_a_cohort_share_the_pairs(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = TrainConfig.of(STUDENT, device="cpu", order_seed=1, workers=0, **asked(made, epochs=2))
    students = [
        dataclasses.replace(base, seed=seed, loss=(loss,), out=str(tmp_path / f"together{seed}"))
        for seed, loss in enumerate(("mlkd", "ctkd", "kl"))
    ]
    epochs, epoch_of = [], Stream.epoch
    with monkeypatch.context() as counting:
        counting.setattr(Stream, "epoch", lambda self, epoch: (epochs.append(epoch), epoch_of(self, epoch))[1])
        assert all(isinstance(one, Trained) for one in train_cohort(students))
    assert epochs == [0, 1]
    for seed, student in enumerate(students):
        train(dataclasses.replace(student, out=str(tmp_path / f"alone{seed}")))
        assert same(weights(tmp_path / f"together{seed}"), weights(tmp_path / f"alone{seed}"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--alpha", "0"], "--strong-cache goes beside the --cache of weak views"),
        (["--hint", "at:teacher=layer1,student=layer1"], "--strong-cache with --hint: hints are read from one cache"),
        (["--targets", "mean"], "--strong-cache with --targets mean: .* leave one of them out"),
        (["--cache", "flipped"], "--strong-cache with several --cache"),
        (["--views-per-image", "2"], "--strong-cache with --views-per-image 2: a row is in two views already"),
        (["--pixels", "close"], "--strong-cache with --pixels close"),
        (["--batch-size", "63"], "has two views of each row in a batch: --batch-size 63 is odd"),
        (["--strong-cache", "weak"], "is the cache of the weak views too: .* --views-per-image 2"),
        (["--strong-cache", "larger"], "has views of 10 pixels, .* of 8"),
        (["--strong-cache", "mixed"], "mixes rows"),
    ],
)
def test_what_cant_be_is_refused_in_one_line(
    options: list[str], says: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    caches = {name: str(made / name) for name in ("weak", "flipped", "larger", "mixed")}
    common = ["--quiet", "train", "--student", STUDENT, "--cache", made / "weak", "--out", tmp_path / "run"]
    options = [caches.get(option, option) for option in options]
    assert command(*common, "--strong-cache", made / "strong", *options) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert re.search(says, error), error
    assert not (tmp_path / "run").exists()


def test_other_data_and_missing_views_are_refused(made: Path, tmp_path: Path) -> None:
    test_split = make_cache(tmp_path / "test", made / "teacher", augment=STRONG, split="test", views=1)
    with pytest.raises(CacheError, match="was made from digits with split test"):
        fit(tmp_path / "run", **asked(made, strong_cache=str(test_split)))
    with pytest.raises(CacheError, match=r"weak, .*strong has 2 complete views that all have, 3 are asked for"):
        fit(tmp_path / "run", **asked(made, views=3))
    assert not (tmp_path / "run").exists()


def test_views_of_different_teachers_are_told(made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit(tmp_path / "run", **asked(made, strong_cache=str(made / "flipped"), views=1, epochs=1))
    assert "are of different teachers" in caplog.text
