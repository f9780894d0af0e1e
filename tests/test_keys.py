"""A cache in a loop of one's own: the same keys, pixels, targets and order as ``softcache train``."""

from __future__ import annotations

import pickle
import re
import sys
from pathlib import Path
from typing import Any

import harness_process
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from harness_examples import EXAMPLES
from harness_train import HINTS, STUDENT, make_cache, make_teacher
from torch import nn
from torch.utils.data import DataLoader

import softcache
from softcache.errors import CacheError, PixelsError, UsageError
from softcache.functional import to_input
from softcache.losses._terms import parse_term
from softcache.stages.keys import KeyBatch, Keys
from softcache.stream.plan import Plan
from softcache.views._open import open_viewed

LAYER = HINTS[0]
EXAMPLE = EXAMPLES / "own_loop.py"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    make_teacher(folder / "teacher")
    make_cache(folder / "cache", folder / "teacher", hint=HINTS, views=3)
    make_cache(folder / "mixed", folder / "teacher", augment="crop:pad=1+mixup:alpha=0.5")
    return folder


def batches_of(keys: Keys, epoch: int, size: int = 100, **options: Any) -> list[KeyBatch]:
    sampler = keys.sampler(size, seed=5)
    sampler.set_epoch(epoch)
    return list(DataLoader(keys, batch_sampler=sampler, collate_fn=keys.collate, **options))


def same(one: KeyBatch, other: KeyBatch) -> bool:
    tensors = [
        (one.rows, other.rows), (one.views, other.views), (one.labels, other.labels),
        *((one.inputs[name], other.inputs[name]) for name in one.inputs),
        *((one.targets[name], other.targets[name]) for name in one.targets),
        *zip(one.mixed or (), other.mixed or (), strict=True),
    ]  # fmt: skip
    return one.targets.keys() == other.targets.keys() and all(torch.equal(a, b) for a, b in tensors)


def test_batches_are_those_of_a_training(made: Path) -> None:
    keys = Keys(made / "cache", hints=[LAYER])
    viewed = open_viewed("digits", "train", size=8)
    cache = softcache.Cache(made / "cache")
    logits, hints = (cache.column(name) for name in ("logits", f"hint.{LAYER}"))
    plan = Plan(np.arange(len(viewed)), 100, 5, 3)
    assert len(keys) == 3 * len(viewed)
    for epoch in range(4):
        found = batches_of(keys, epoch)
        assert len(found) == plan.steps == len(keys.sampler(100))
        for batch, (part,) in zip(found, plan.batches(epoch), strict=True):
            view = epoch % 3
            assert np.array_equal(batch.rows, part.rows)
            assert bool((batch.views == view).all())
            assert torch.equal(batch.inputs["pixels"], viewed.batch(part.rows, view))
            assert np.array_equal(batch.targets["logits"], logits.gather(view, part.rows)["values"])
            assert np.array_equal(batch.targets[LAYER], hints.gather(view, part.rows)["values"])
            assert np.array_equal(batch.labels, viewed.samples.labels[part.rows])
            assert batch.mixed is None


def test_a_loop_of_ones_own_trains_the_student_that_train_trains(made: Path, tmp_path: Path) -> None:
    """Bit for bit: the same keys in the same order, and the same arithmetic."""
    options = {"epochs": 3, "batch_size": 128, "seed": 3, "optimizer": "sgd", "lr": 0.05, "momentum": 0.0,
               "weight_decay": 0.0, "schedule": "constant", "warmup": 0, "clip_grad": 0, "amp": "off",
               "channels_last": False, "device": "cpu", "nesterov": False}  # fmt: skip
    run = softcache.train(
        STUDENT, cache=(str(made / "cache"),), out=tmp_path / "run", loss=("kl",), T=4, alpha=0.9, **options
    )
    keys = Keys(made / "cache")
    samples = open_viewed("digits", "train").samples
    student = softcache.open_network(STUDENT, classes=10, statistics=samples.statistics, seed=3).train()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.0, fused=True)
    sampler = keys.sampler(128, seed=3)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        for batch in DataLoader(keys, batch_sampler=sampler, collate_fn=keys.collate):
            logits = student(batch.inputs["pixels"])
            soft = softcache.functional.kl(logits, batch.targets["logits"], T=4)
            loss = 0.9 * soft + (1 - 0.9) * F.cross_entropy(logits, batch.labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    theirs = softcache.open_network(str(run.folder), classes=10).state_dict()
    for name, value in student.state_dict().items():
        assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize(("start", "workers"), [("fork", 2), ("spawn", 1)])
def test_workers_of_any_kind_give_the_same(made: Path, start: str, workers: int) -> None:
    keys = Keys(made / "cache")
    sampler = keys.sampler(200, seed=5)
    loader = DataLoader(
        keys, batch_sampler=sampler, collate_fn=keys.collate, num_workers=workers, persistent_workers=True,
        multiprocessing_context=start,
    )  # fmt: skip
    for epoch in range(2):
        sampler.set_epoch(epoch)
        assert all(map(same, loader, batches_of(keys, epoch, 200)))


def test_an_epoch_is_its_number_alone(made: Path) -> None:
    keys = Keys(made / "cache")
    list(batches_of(keys, 0))
    again = pickle.loads(pickle.dumps(keys))
    assert all(map(same, batches_of(keys, 7), batches_of(again, 7)))
    assert not same(batches_of(keys, 7)[0], batches_of(keys, 8)[0])


def test_two_ranks_share_an_epoch(made: Path) -> None:
    keys = Keys(made / "cache")
    samplers = [keys.sampler(50, seed=1, rank=rank, ranks=2) for rank in range(2)]
    both = [list(sampler) for sampler in samplers]
    assert [len(found) for found in both] == [len(sampler) for sampler in samplers]
    one, other = (list(map(len, found)) for found in both)
    assert one == other
    seen = [key for found in both for batch in found for key in batch]
    assert len(set(seen)) == len(seen) >= len(keys.viewed) - 1
    assert [one + other for one, other in zip(*both, strict=True)] == [
        [(row, 0) for row in part.rows[: len(part.rows) // 2 * 2].tolist()]
        for (part,) in Plan(np.arange(len(keys.viewed)), 100, 1, 3).batches(0)
    ]


def test_a_row_is_no_key_unless_the_view_is_fixed(made: Path) -> None:
    keys, fixed = Keys(made / "cache"), Keys(made / "cache", view=1)
    with pytest.raises(UsageError, match=r"7 is a row and no key \(row, view\): give DataLoader batch_sampler"):
        keys[7]
    with pytest.raises(UsageError, match=r"key \(7, 3\): the views are 0, 1, 2"):
        keys[7, 3]
    assert same(fixed[7], keys[7, 1])
    assert len(fixed) == len(fixed.viewed)
    found = next(iter(DataLoader(fixed, batch_size=4, collate_fn=fixed.collate)))
    assert same(found, keys.collate([keys[row, 1] for row in range(4)]))


def test_keys_of_several_views_come_in_the_order_asked_for(made: Path) -> None:
    keys = Keys(made / "cache", hints=[LAYER])
    wanted = [(5, 2), (1, 0), (5, 0), (9, 1), (5, 2)]
    assert same(keys.__getitems__(wanted), keys.collate([keys[key] for key in wanted]))


def test_a_mixed_sample_has_its_partner(made: Path) -> None:
    keys = Keys(made / "mixed")
    batch = keys.__getitems__([(row, view) for view in (1, 0) for row in range(20)])
    assert batch.mixed is not None
    partners, weight = keys.viewed.mixing(np.arange(20), 0)  # type: ignore[misc]
    assert np.array_equal(batch.mixed[0][20:], keys.labels[partners])
    assert np.array_equal(batch.mixed[1][20:], weight)


@pytest.mark.parametrize("workers", [0, 1])
def test_other_pixels_stop_the_loop(made: Path, workers: int) -> None:
    keys = Keys(made / "cache")
    images = keys.viewed.samples.images
    assert images is not None
    keys.viewed.samples.images = images.copy()
    keys.viewed.samples.images[300] ^= 1
    with pytest.raises(PixelsError, match=r"row 300 in view 0 has other pixels than the teacher saw \(1 of "):
        list(batches_of(keys, 0, num_workers=workers))


def test_what_is_not_there_is_said(made: Path) -> None:
    with pytest.raises(CacheError, match=r"has no hint 'layer9' \(it has .*\): add it with: softcache dump"):
        Keys(made / "cache", hints=["layer9"])
    with pytest.raises(CacheError, match=r"has no output 'embedding' \(it has logits\): add it with: softcache dump"):
        Keys(made / "cache", outputs=["embedding"])
    with pytest.raises(UsageError, match="hints are several names"):
        Keys(made / "cache", hints="layer1")
    with pytest.raises(UsageError, match="one is asked for twice"):
        Keys(made / "cache", outputs=["logits", "logits"])
    with pytest.raises(CacheError, match="no complete view 3: it has 0, 1, 2"):
        Keys(made / "cache", view=3)
    with pytest.raises(CacheError, match="has 3 complete views, 4 are asked for"):
        Keys(made / "cache", views=4)
    with pytest.raises(UsageError, match="rank 2 of 2"):
        Keys(made / "cache").sampler(8, rank=2, ranks=2)
    with pytest.raises(UsageError, match="nothing to read"):
        Keys(made / "cache", outputs=[])
    hints_alone = Keys(made / "cache", outputs=[], hints=[LAYER])[3, 0]
    assert set(hints_alone.targets) == {LAYER}


@pytest.mark.parametrize(
    "name", ["kl", "ce", "hard", "mse", "dkd", "nkd", "dist", "wsld", "ttm", "wttm", "rld", "mlkd"]
)
def test_losses_are_functions(name: str) -> None:
    student, teacher = torch.randn(6, 5), torch.randn(6, 5)
    labels = torch.arange(6) % 5
    term = parse_term(name)
    T = term.T_schedule().at(0, 1)
    found = getattr(softcache.functional, name)(student, teacher, labels=labels)
    assert found == term(student, teacher, T, labels)


def test_functions_take_the_options_of_a_spec() -> None:
    student, teacher, labels = torch.randn(6, 5), torch.randn(6, 5), torch.arange(6) % 5
    found = softcache.functional.dkd(student, teacher, 2, labels, beta=8.0)
    assert found == parse_term("dkd:beta=8")(student, teacher, 2, labels)
    found = softcache.functional.kl(student, teacher, standardize=True)
    assert found == parse_term("kl:standardize=true")(student, teacher, 2)
    with pytest.raises(AttributeError, match="no loss 'kll'"):
        _ = softcache.functional.kll
    assert {"kl", "dist", "to_input"} <= set(dir(softcache.functional))


def test_an_input_is_what_a_network_makes_of_pixels() -> None:
    pixels = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    network = softcache.open_network("cifar:resnet8", classes=3, statistics=(mean, std), seed=0)
    torch.testing.assert_close(to_input(pixels, mean, std), network.prepare(pixels))
    assert isinstance(network, nn.Module)


def test_the_example_trains(here: Path) -> None:
    make_teacher(here / "teacher")
    digits = open_viewed("digits", "train").samples
    assert digits.images is not None
    np.savez("few.npz", train_images=digits.images[:128], train_labels=digits.labels[:128])
    make_cache(here / "caches" / "digits", here / "teacher", dataset="arrays:few.npz")
    done = harness_process.run(
        [sys.executable, str(EXAMPLE), "--epochs", "2", "--batch-size", "32", "--workers", "1"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    losses = [float(found) for found in re.findall(r"loss (\S+)", done.stdout)]
    assert len(losses) == 2
    assert losses[1] < losses[0]
    state = torch.load("student.pt", weights_only=True)
    torchvision.models.resnet18(num_classes=10).load_state_dict(state)
    wrong = harness_process.run([sys.executable, str(EXAMPLE), "--cache", "nowhere"], capture_output=True, text=True)
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("error: ")
