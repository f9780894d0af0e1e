"""Every way to make batches gives the same batches: pixels, logits, labels, order."""

from __future__ import annotations

import gc
import os

import numpy as np
import pytest
import torch
from harness_cache import make_cache
from torch.utils.data import DataLoader, Dataset

from softcache.cache.schema import ColumnRecord
from softcache.errors import PixelsError, UsageError
from softcache.stream.batches import Stream
from softcache.stream.inputs import ResidentInputs, WorkerInputs, pick_inputs
from softcache.stream.plan import Plan
from softcache.stream.targets import CachedTargets
from softcache.stream.transfer import PinnedBuffers, host_tensor, unsigned
from softcache.stream.windows import Windows, pick_windows
from softcache.stream.workers import follow_parent, starting
from softcache.views._digest import digest
from softcache.views._open import open_viewed
from softcache.views._viewed import ViewedDataset

CPU = torch.device("cpu")
WAYS = ["resident", "host", "workers 0", "fork", "spawn"]
KEEPS = ["held", "joined", "apart", "blocks"]


@pytest.fixture(scope="module")
def digits() -> ViewedDataset:
    return open_viewed("digits", "train", size=8, augment="crop:pad=1+flip")


@pytest.fixture(scope="module")
def caches(digits: ViewedDataset, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The same logits in few shards and in many."""
    made = {}
    for name, shard_rows in (("joined", 1024), ("apart", 64)):
        folder = tmp_path_factory.mktemp(name) / "cache"
        hints = {"layer1": ColumnRecord("values", [3, 2], "fp16", 32)}
        made[name] = make_cache(folder, rows=len(digits), shard_rows=shard_rows, views=3, hints=hints, viewed=digits)
    return made


def pixel_source(viewed: ViewedDataset, way: str):
    if way in ("resident", "host"):
        return ResidentInputs(viewed, CPU, host=way == "host")
    count = {"workers 0": 0, "spawn": 1}.get(way, 2)  # a spawned one imports torch, two seconds of a processor
    return WorkerInputs(viewed, CPU, count, start=way if way in ("fork", "spawn") else "auto")


def batches_of(viewed: ViewedDataset, caches: dict, way: str, keep: str, plan: Plan, epochs: int = 2) -> list:
    cache = caches["joined" if keep in ("held", "joined") else "apart"][0]
    blocks = Windows(64, 4) if keep == "blocks" else None
    teacher = CachedTargets({"logits": [cache]}, {"layer1": cache}, CPU, hold=keep == "held", blocks=blocks)
    stream = Stream(viewed, pixel_source(viewed, way), plan, CPU, visible=viewed.samples.labels, teacher=teacher)
    return [batch for epoch in range(epochs) for batch in stream.epoch(epoch)]


def flat(batches: list) -> list[np.ndarray]:
    return [
        part.cpu().numpy()
        for b in batches
        for part in (
            b.rows,
            b.inputs,
            b.labels,
            b.visible,
            b.targets.outputs["logits"][0],
            b.targets.hints["layer1"],
            b.targets.digests[0],
        )
    ]


@pytest.mark.parametrize("per_image", [1, 2])
def test_every_stream_gives_the_same_bytes(digits: ViewedDataset, caches: dict, per_image: int) -> None:
    plan = Plan(np.arange(len(digits)), 100, 5, 3, windows=Windows(64, 4), per_image=per_image)
    first = batches_of(digits, caches, "resident", "joined", plan)
    pairs = [(way, "joined") for way in WAYS[1:]] + [("resident", keep) for keep in KEEPS if keep != "joined"]
    for way, keep in pairs:
        if per_image > 1 and way == "spawn":
            continue  # workers' start has no say in what a batch is made of
        other = batches_of(digits, caches, way, keep, plan)
        assert len(other) == len(first) == 2 * plan.steps
        for ours, theirs in zip(flat(first), flat(other), strict=True):
            assert ours.dtype == theirs.dtype, (way, keep)
            assert np.array_equal(ours, theirs), (way, keep)


@pytest.mark.parametrize("keep", KEEPS)
def test_a_batch_holds_what_its_keys_say(digits: ViewedDataset, caches: dict, keep: str) -> None:
    plan = Plan(np.arange(len(digits)), 64, 9, 3, windows=Windows(64, 4), per_image=2)
    batches = batches_of(digits, caches, "resident", keep, plan, epochs=3)
    logits = caches["joined"][1]
    for number, batch in enumerate(batches):
        views = [(0, 1), (0, 1), (2, 0)][number // plan.steps]
        images = len(batch.rows) // 2
        for at, view in enumerate(views):
            part = slice(at * images, (at + 1) * images)
            rows = batch.rows[part].numpy()
            assert np.array_equal(batch.targets.outputs["logits"][0][part].numpy(), logits[view][rows])
            assert torch.equal(batch.inputs[part], digits.batch(rows, view))
            assert np.array_equal(batch.labels[part].numpy(), digits.samples.labels[rows])
            assert torch.equal(batch.targets.digests[0][part], digest(batch.inputs[part]))


def test_a_batch_stays_what_it_was_while_later_ones_come(digits: ViewedDataset, caches: dict) -> None:
    plan = Plan(np.arange(len(digits)), 32, 1, 3)
    cache = caches["apart"][0]
    teacher = CachedTargets({"logits": [cache]}, {}, CPU, hold=False)
    stream = Stream(digits, ResidentInputs(digits, CPU), plan, CPU, visible=digits.samples.labels, teacher=teacher)
    seen = [(b, b.targets.outputs["logits"][0].clone(), b.inputs.clone()) for b in stream.epoch(0)]
    assert all(
        torch.equal(b.targets.outputs["logits"][0], kept) and torch.equal(b.inputs, was) for b, kept, was in seen
    )


def test_all_rows_come_in_as_many_views_after_as_many_epochs() -> None:
    plan = Plan(np.arange(101), 12, 3, 6, per_image=3)
    assert plan.keys == 102
    for first in (0, 3):
        epochs = [np.concatenate([part.rows for (part,) in plan.batches(e)]) for e in range(first, first + 3)]
        assert {plan.views_at(epoch) for epoch in range(first, first + 3)} == {tuple(range(first, first + 3))}
        seen = np.concatenate(epochs)
        assert len(seen) == 102  # one image comes twice, to fill the last batch
        assert np.array_equal(np.unique(seen), np.arange(101))
    with pytest.raises(UsageError, match="--views-per-image 5"):
        Plan(np.arange(10), 12, 0, 6, per_image=5)


@pytest.mark.parametrize("rows", [np.arange(1000), np.flatnonzero(np.arange(1000) % 7 == 0)])
def test_a_shuffle_of_blocks_is_a_shuffle_that_stays_in_its_window(rows: np.ndarray) -> None:
    windows = Windows(16, 8)
    order = windows.permutation(np.random.default_rng(0), rows)
    assert np.array_equal(np.sort(order), rows)
    assert not np.array_equal(order, rows)
    blocks = order // 16
    places = np.arange(len(order))
    first = np.array([places[blocks == block][0] for block in blocks])
    last = np.array([places[blocks == block][-1] for block in blocks])
    # at no time are more blocks begun and not finished than a window has
    assert max(len(np.unique(blocks[(first <= at) & (at <= last)])) for at in places) <= 8
    within = [order[blocks == block] for block in np.unique(blocks)]
    assert any(not np.array_equal(part, np.sort(part)) for part in within)


def test_the_shuffle_is_chosen_by_what_fits_and_says_why(caches: dict) -> None:
    cache = caches["joined"][0]
    columns = [(cache, "logits")]
    epoch = cache.layout("logits").row_bytes * cache.rows
    windows, why = pick_windows(columns, "auto", 2 * epoch)
    assert windows is None
    assert why.startswith("full shuffle: an epoch reads")
    windows, why = pick_windows(columns, "auto", 2 * epoch - 2)
    assert windows is not None
    assert "blocks" in why
    assert "of memory are available" in why
    assert pick_windows(columns, "full", 0)[0] is None
    assert pick_windows(columns, "block", 2**40)[0] is not None
    assert pick_windows([], "auto", 0)[0] is None
    with pytest.raises(UsageError, match="--shuffle 'blok'"):
        pick_windows(columns, "blok", 0)


def test_resident_refuses_what_cant_be_made_by_indexing() -> None:
    decoded = open_viewed("digits", "train", size=8, augment="rrc")
    for place in ("device", "host"):
        with pytest.raises(UsageError, match=f"--resident {place}: views of rrc"):
            pick_inputs(decoded, CPU, resident=place)
    assert pick_inputs(decoded, CPU, resident="auto", workers=0).name == "mapped, 0 workers"


def test_auto_is_resident_where_pixels_fit_the_budget(digits: ViewedDataset) -> None:
    needed = len(digits) * 8 * 8
    assert pick_inputs(digits, CPU, budget=needed).name.startswith("resident")
    assert pick_inputs(digits, CPU, budget=needed - 1).name == "mapped, 0 workers"


def test_wrong_pixels_are_named_by_row_and_view(digits: ViewedDataset, caches: dict) -> None:
    other = open_viewed("digits", "train", size=8, augment="crop:pad=1+flip", view_seed=1)
    plan = Plan(np.arange(len(digits)), 8, 5, 3, per_image=2)
    with pytest.raises(PixelsError, match=r"row \d+ in view [01] has other pixels"):
        batches_of(other, caches, "resident", "joined", plan)


def test_a_recipe_that_mixes_gets_its_partners_in_every_view() -> None:
    mixed = open_viewed("digits", "train", size=8, augment="crop:pad=1+mixup")
    plan = Plan(np.arange(len(mixed)), 64, 5, 4, per_image=2)
    stream = Stream(mixed, WorkerInputs(mixed, CPU, 0), plan, CPU, visible=mixed.samples.labels, teacher=None)
    batch = next(iter(stream.epoch(0)))
    assert batch.mixed is not None
    rows = batch.rows.numpy()
    for view in (0, 1):
        part = slice(32 * view, 32 * view + 32)
        partners, weight = mixed.mixing(rows[part], view)
        assert np.array_equal(batch.mixed[0][part].numpy(), mixed.samples.labels[partners])
        assert np.array_equal(batch.mixed[1][part].numpy(), weight)


def test_landing_takes_turns_between_two_sets_of_buffers() -> None:
    pinned = PinnedBuffers(CPU, pinned=False)
    wanted = {"a": ("<f2", (4, 3)), "digest": ("<u4", (4,))}
    first, second, third = pinned.arrays(wanted), pinned.arrays(wanted), pinned.arrays(wanted)
    assert not np.shares_memory(first["a"], second["a"])
    assert np.shares_memory(first["a"], third["a"])
    third["a"][...] = 2.5
    third["digest"][...] = 0xFFFFFFFE
    sent = pinned.send(third)
    third["a"][...] = 0
    assert sent["a"].dtype == torch.float16
    assert bool((sent["a"] == 2.5).all())
    assert unsigned(sent["digest"]).tolist() == [0xFFFFFFFE] * 4
    assert pinned.arrays({"a": ("<f2", (9, 3))})["a"].shape == (9, 3)


def test_read_only_memory_becomes_a_tensor_without_copy_or_warning(tmp_path) -> None:
    np.save(tmp_path / "a.npy", np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    tensor = host_tensor(mapped)
    assert tensor.data_ptr() == mapped.ctypes.data
    expected = np.array(mapped)
    del mapped
    assert np.array_equal(tensor.numpy(), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("way", WAYS[:4])
def test_a_gpu_gets_the_same_batches(digits: ViewedDataset, caches: dict, way: str, keep: str) -> None:
    cuda = torch.device("cuda")
    plan = Plan(np.arange(len(digits)), 100, 5, 3, windows=Windows(64, 4))
    expected = flat(batches_of(digits, caches, "resident", "joined", plan))
    cache = caches["joined" if keep in ("held", "joined") else "apart"][0]
    blocks = plan.windows if keep == "blocks" else None
    teacher = CachedTargets({"logits": [cache]}, {"layer1": cache}, cuda, hold=keep == "held", blocks=blocks)
    workers = {"workers 0": 0, "fork": 2}
    source = (
        WorkerInputs(digits, cuda, workers[way]) if way in workers else ResidentInputs(digits, cuda, host=way == "host")
    )
    stream = Stream(digits, source, plan, cuda, visible=digits.samples.labels, teacher=teacher)
    found = [batch for epoch in range(2) for batch in stream.epoch(epoch)]
    assert all(np.array_equal(a, b) for a, b in zip(expected, flat(found), strict=True))


class _Left:
    """Garbage that only a collection frees, and that asks a GPU's driver where it is freed: what a training leaves."""

    def __init__(self, device: torch.device):
        self.itself = self
        self.tensor = torch.ones(1000, device=device)
        if device.type == "cuda":
            self.tensor.record_stream(torch.cuda.Stream(device))
        self.process = os.getpid()

    def __del__(self) -> None:
        if os.getpid() != self.process:
            os.write(2, b"collected by a worker")
            os._exit(3)


class _Collecting(Dataset):
    def __getitem__(self, number: int) -> torch.Tensor:
        return torch.tensor(gc.collect())


@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def test_a_forked_worker_collects_nothing_of_its_parent(device: str) -> None:
    """torch aborts a forked worker that frees a GPU's tensor which two streams have used."""
    gc.collect()
    loader = DataLoader(
        _Collecting(), batch_size=None, sampler=range(3), num_workers=1, worker_init_fn=follow_parent,
        multiprocessing_context="fork",
    )  # fmt: skip
    gc.disable()
    try:
        _Left(torch.device(device))
        with starting():
            batches = iter(loader)
            assert not gc.isenabled()
        assert not gc.isenabled()  # as it was
        assert len(list(batches)) == 3
    finally:
        gc.enable()
        gc.collect()
    with starting():
        pass
    assert gc.isenabled()
