"""Fresh views beside recorded ones: which rows of a batch are which, and what each of them is given."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from harness_cache import make_cache

from softcache.cache.reader import Cache
from softcache.cache.schema import MAX_VIEWS
from softcache.errors import PixelsError
from softcache.losses._schedule import Schedule
from softcache.stream.batches import Batch, Stream
from softcache.stream.both import BothTargets
from softcache.stream.inputs import InputSource, Keys, ResidentInputs, WorkerInputs
from softcache.stream.mean import MeanTargets
from softcache.stream.parts import Parts
from softcache.stream.plan import FreshShare, Plan
from softcache.stream.targets import CachedTargets
from softcache.stream.windows import Windows
from softcache.views._open import open_viewed
from softcache.views._viewed import ViewedDataset

CPU = torch.device("cpu")
EPOCHS, BATCH, VIEWS = 4, 48, 3
WINDOWS = Windows(64, 4)


@pytest.fixture(scope="module")
def digits() -> ViewedDataset:
    return open_viewed("digits", "train", size=8, augment="crop:pad=1+flip")


@pytest.fixture(scope="module")
def recorded(digits: ViewedDataset, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Cache, list[np.ndarray]]]:
    """Two teachers' caches, each with its logits (N, C) in each view."""
    rows = len(digits)
    return [
        make_cache(tmp_path_factory.mktemp(codec) / "cache", rows=rows, shard_rows=64, views=VIEWS, viewed=digits,
                   codec=codec, classes=10)
        for codec in ("fp16", "fp32")
    ]  # fmt: skip


def plan_of(rows: int, share: str, views: Sequence[int] = range(VIEWS), windows: Windows | None = None) -> Plan:
    fresh = FreshShare(Schedule.parse(share), EPOCHS)
    return Plan(np.arange(rows), BATCH, 7, tuple(views), windows=windows, fresh=fresh)


def targets_of(caches: Sequence[Cache], views: Sequence[int], keep: str) -> BothTargets:
    blocks = WINDOWS if keep == "blocks" else None
    means = MeanTargets({"logits": caches}, views, CPU, budget=0 if keep == "blocks" else None)
    return BothTargets(CachedTargets({"logits": caches}, {}, CPU, hold=keep == "held", blocks=blocks), means)


def stream_of(viewed: ViewedDataset, pixels: InputSource, plan: Plan, teacher: BothTargets | MeanTargets) -> Stream:
    return Stream(viewed, pixels, plan, CPU, visible=viewed.samples.labels, teacher=teacher)


# Which rows are which.


@pytest.mark.parametrize(
    ("share", "fresh"), [("0.25", [12] * 4), ("0:1:linear", [0, 16, 32, 48]), ("1:0:alternate", [48, 0, 48, 0])]
)
def test_the_first_rows_of_a_batch_are_fresh_and_the_order_is_as_without(share: str, fresh: list[int]) -> None:
    plan, plain = plan_of(100, share), Plan(np.arange(100), BATCH, 7, VIEWS)
    for epoch, count in enumerate(fresh):
        assert np.array_equal(plan.order(epoch), plain.order(epoch))
        batches = list(plan.batches(epoch))
        rows = [np.concatenate([part.rows for part in parts]) for parts in batches]
        assert [len(of_batch) for of_batch in rows] == [48, 48, 4]
        assert np.array_equal(np.concatenate(rows), plan.order(epoch))
        for parts, keys in zip(batches, (48, 48, 4), strict=True):
            assert [part.fresh for part in parts] == sorted((part.fresh for part in parts), reverse=True)
            expected = round(count * keys / 48)
            assert sum(len(part) for part in parts if part.fresh) == expected
            assert len(parts) == (1 if expected in (0, keys) else 2)  # none is empty


@pytest.mark.parametrize("share", ["0:1:alternate", "1:0:alternate", "0.5:1:alternate", "0.5", "0.999:0:alternate"])
@pytest.mark.parametrize("views", [(0, 1, 2, 3), (5, 2, 9)])
def test_every_recorded_view_is_visited_whatever_the_share(share: str, views: tuple[int, ...]) -> None:
    plan = plan_of(100, share, views)
    seen: list[int] = []
    for epoch in range(16):
        of_epoch = {part.views for parts in plan.batches(epoch) for part in parts if not part.fresh}
        assert len(of_epoch) <= 1
        seen += [view for views in of_epoch for view in views]
        fresh = {part.views for parts in plan.batches(epoch) for part in parts if part.fresh}
        assert fresh <= {(MAX_VIEWS + epoch,)}
    assert len(seen) >= 8
    assert seen == [views[turn % len(views)] for turn in range(len(seen))]


# What they are given.


@pytest.mark.parametrize("keep", ["held", "mapped", "blocks"])
@pytest.mark.parametrize("views", [(0, 1, 2), (2, 0)])
def test_a_part_has_the_pixels_and_targets_of_its_own_kind(
    digits: ViewedDataset, recorded: list, keep: str, views: tuple[int, ...]
) -> None:
    caches = [cache for cache, _ in recorded]
    plan = plan_of(len(digits), "0.25:0.75:linear", views, WINDOWS)
    stream = stream_of(digits, ResidentInputs(digits, CPU), plan, targets_of(caches, views, keep))
    labels = digits.samples.labels
    for epoch in range(EPOCHS):
        count = [12, 20, 28, 36][epoch]
        view, visited = views[epoch % len(views)], []
        for batch in stream.epoch(epoch):
            rows, part = batch.rows.numpy(), round(count * len(batch.rows) / BATCH)
            visited.append(rows)
            assert np.array_equal(batch.labels.numpy(), labels[rows])
            for found, (_, logits) in zip(batch.targets.outputs["logits"], recorded, strict=True):
                mean = np.mean([logits[v][rows[:part]].astype(np.float64) for v in views], axis=0)
                np.testing.assert_allclose(found[:part].numpy(), mean, rtol=1e-6, atol=1e-6)
                assert np.array_equal(found[part:].numpy(), logits[view][rows[part:]])
            assert torch.equal(batch.inputs[part:], digits.batch(rows[part:], view))
            assert torch.equal(batch.inputs[:part], digits.batch(rows[:part], 10_000 + epoch))
            if part > 4:
                assert not any(torch.equal(batch.inputs[:part], digits.batch(rows[:part], v)) for v in range(VIEWS))
        assert np.array_equal(np.sort(np.concatenate(visited)), np.arange(len(digits)))


@pytest.mark.parametrize("way", ["host", "workers 0", "fork", "spawn"])
def test_every_way_to_make_pixels_gives_the_same_batches(digits: ViewedDataset, recorded: list, way: str) -> None:
    caches, plan = [cache for cache, _ in recorded], plan_of(len(digits), "1:0.4:linear")

    def batches(pixels: InputSource) -> list[Batch]:
        stream = stream_of(digits, pixels, plan, targets_of(caches, range(VIEWS), "mapped"))
        return [batch for epoch in range(2) for batch in stream.epoch(epoch)]

    if way == "host":
        other: InputSource = ResidentInputs(digits, CPU, host=True)
    else:
        start = way if way in ("fork", "spawn") else "auto"
        other = WorkerInputs(digits, CPU, {"workers 0": 0, "spawn": 1}.get(way, 2), start=start)
    found, expected = batches(other), batches(ResidentInputs(digits, CPU))
    assert len(found) == 2 * plan.steps
    for ours, theirs in zip(expected, found, strict=True):
        assert torch.equal(ours.rows, theirs.rows)
        assert torch.equal(ours.inputs, theirs.inputs)
        assert all(map(torch.equal, ours.targets.outputs["logits"], theirs.targets.outputs["logits"]))


class Damaged:
    """Pixels with one bit changed in one place of one batch."""

    def __init__(self, pixels: InputSource, number: int, place: int):
        self.name, self._pixels, self._number, self._place = pixels.name, pixels, number, place

    def epoch(self, batches: Sequence[Parts]) -> Keys:
        for number, (parts, on_device, pixels) in enumerate(self._pixels.epoch(batches)):
            if number == self._number:
                pixels = pixels.clone()
                pixels[self._place, 3, 3, 0] ^= 1
            yield parts, on_device, pixels


@pytest.mark.parametrize("at_once", [True, False])
def test_one_changed_bit_of_a_recorded_key_stops_the_epoch(
    digits: ViewedDataset, recorded: list, at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches, plan = [cache for cache, _ in recorded], plan_of(len(digits), "0.25")

    def run(place: int) -> None:
        stream = stream_of(
            digits, Damaged(ResidentInputs(digits, CPU), 3, place), plan, targets_of(caches, range(VIEWS), "held")
        )
        monkeypatch.setattr(stream, "_at_once", at_once)  # as on a GPU
        assert len(list(stream.epoch(1))) == plan.steps

    row = int(plan.order(1)[3 * BATCH + 12])
    keys = 36 if at_once else len(digits) - 12 * plan.steps  # the last batch of 46 has 12 fresh rows too
    with pytest.raises(PixelsError, match=rf"row {row} in view 1 has other pixels than .* \(1 of {keys} keys of this"):
        run(12)
    with pytest.raises(PixelsError, match=r"in view 1 has other pixels"):
        run(BATCH - 1)
    run(11)  # a fresh key has no digest: the teacher has never seen it
    run(0)


def test_all_of_a_batch_fresh_has_the_targets_of_means(digits: ViewedDataset, recorded: list) -> None:
    caches, rows = [cache for cache, _ in recorded], np.arange(len(digits))
    both = stream_of(
        digits, ResidentInputs(digits, CPU), plan_of(len(rows), "1"), targets_of(caches, range(VIEWS), "held")
    )
    mean = stream_of(
        digits,
        ResidentInputs(digits, CPU),
        Plan(rows, BATCH, 7, None),
        MeanTargets({"logits": caches}, range(VIEWS), CPU),
    )
    for ours, theirs in zip(both.epoch(2), mean.epoch(2), strict=True):
        assert torch.equal(ours.rows, theirs.rows)
        assert all(map(torch.equal, ours.targets.outputs["logits"], theirs.targets.outputs["logits"]))
        assert not torch.equal(ours.inputs, theirs.inputs)
