"""The dump's pipeline: what waits for what, and how much of it waits at once."""

from __future__ import annotations

import errno
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from harness_cache import identity, kept_nothing
from torch.utils.data import DataLoader

import softcache.stream.workers as worker_processes
from softcache import registry
from softcache.cache.column import Column
from softcache.cache.reader import Cache
from softcache.cache.schema import LOGITS, ColumnRecord
from softcache.cache.writer import BlockWriter, create_or_extend, plan
from softcache.cli.dump import command
from softcache.dumping import pipeline
from softcache.dumping.batch_size import find_batch
from softcache.dumping.codec_error import CodecError
from softcache.dumping.forward import Forward
from softcache.dumping.pipeline import run_blocks
from softcache.dumping.write_behind import WriteBehind
from softcache.models._open import open_network
from softcache.stages.dump import dump
from softcache.views._open import open_viewed
from softcache.views._viewed import ViewedDataset

CPU = torch.device("cpu")
BATCH = 64


@pytest.fixture(scope="module")
def digits() -> ViewedDataset:
    return open_viewed("digits", "train", size=8, augment="crop:pad=1")


def empty_cache(folder: Path, viewed: ViewedDataset, views: int = 2) -> Cache:
    return create_or_extend(
        folder,
        identity(len(viewed), 512, viewed.identity()),
        views=views,
        columns={LOGITS: ColumnRecord("classes", [10], "fp32", 512)},
        made={},
        class_names=viewed.samples.classes,
        labels=viewed.samples.labels,
        names=None,
        samples=kept_nothing(8),
    )


class Counting(Forward):
    """Counts batches that were computed."""

    computed = 0

    def __call__(self, pixels):
        self.computed += 1
        return super().__call__(pixels)


def forward_of(viewed: ViewedDataset) -> Counting:
    network = open_network("cifar:resnet8", classes=10, statistics=viewed.samples.statistics, seed=0).eval()
    return Counting(network, [LOGITS], CPU)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_slow_disk_holds_the_teacher_back(
    tmp_path: Path, digits: ViewedDataset, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    cache, forward = empty_cache(tmp_path / "cache", digits), forward_of(digits)
    monkeypatch.setattr(pipeline, "QUEUE_LIMIT", 3)
    waiting, written, write = [], [0], BlockWriter.write

    def slowly(self: BlockWriter, *given: Any) -> None:
        time.sleep(0.03)
        write(self, *given)
        written[0] += 1
        waiting.append(forward.computed - written[0])

    monkeypatch.setattr(BlockWriter, "write", slowly)
    run_blocks(cache, digits, forward, plan(cache, 2, [LOGITS]), workers=workers)
    assert forward.computed == written[0] == 2 * -(-len(digits) // BATCH)
    # three in the queue, and one more that the teacher has computed and can't put there
    assert max(waiting) == 4
    assert not Cache(cache.folder).missing([LOGITS], 2)


def test_the_teacher_does_not_wait_for_a_disk_that_keeps_up(
    tmp_path: Path, digits: ViewedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, forward = empty_cache(tmp_path / "cache", digits), forward_of(digits)
    writers = set()
    write = BlockWriter.write

    def elsewhere(self: BlockWriter, *given: Any) -> None:
        writers.add(threading.current_thread().name)
        write(self, *given)

    monkeypatch.setattr(BlockWriter, "write", elsewhere)
    run_blocks(cache, digits, forward, plan(cache, 2, [LOGITS]))
    assert [name.partition("_")[0] for name in writers] == ["softcache-writer"]
    expected = forward(digits.batch(np.arange(BATCH), 1))[LOGITS]
    found = Cache(cache.folder).column(LOGITS).gather(1, np.arange(BATCH))["values"]
    assert np.array_equal(found, expected.numpy())


def test_workers_give_the_dump_the_same_bytes(
    tmp_path: Path, digits: ViewedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, started, loader = [], [], DataLoader.__init__

    def told(self: DataLoader, *arguments: Any, **options: Any) -> None:
        started.append(options["multiprocessing_context"])
        loader(self, *arguments, **options)

    monkeypatch.setattr(DataLoader, "__init__", told)
    for number, (workers, platform) in enumerate([(0, "linux"), (2, "linux"), (2, "darwin")]):
        # how workers start is asked of the platform; the rest of Python goes on as it is
        monkeypatch.setattr(worker_processes, "sys", SimpleNamespace(platform=platform))
        cache = empty_cache(tmp_path / f"cache-{number}", digits)
        run_blocks(cache, digits, forward_of(digits), plan(cache, 2, [LOGITS]), workers=workers)
        found.append([path.read_bytes() for path in sorted(cache.folder.rglob("logits-*.h5"))])
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 6
    assert started == [None, "fork", "spawn"]


class WithoutDoubles(torch.Tensor):
    """Stands for a tensor on Apple's GPU, which has no float64 and whose memory NumPy can't see."""

    device = property(lambda self: torch.device("mps"))  # type: ignore[assignment]

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.Tensor.cpu:
            return args[0].as_subclass(torch.Tensor)
        found = super().__torch_function__(function, types, args, kwargs or {})
        if isinstance(found, cls) and found.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        return found


def test_a_device_without_float64_measures_the_same(tmp_path: Path, digits: ViewedDataset) -> None:
    logits = torch.randn(300, 10, generator=torch.Generator().manual_seed(1))
    found = []
    for given in (logits, logits.as_subclass(WithoutDoubles)):
        measure = CodecError(Column("logits", "classes", (10,), registry.create("codecs", "fp16"), 64))
        measure(given)
        found.append(measure.result())
    assert found[0] == found[1]
    cache = empty_cache(tmp_path / "cache", digits)
    block, pixels = plan(cache, 2, [LOGITS])[0], digits.batch(np.arange(300), 0)
    said = {LOGITS: logits.as_subclass(WithoutDoubles)}
    columns, finite, _, _ = pipeline._compute(cache, block, pixels, said)
    assert {type(t) for t in [*columns[LOGITS].values(), *finite.values()]} == {torch.Tensor}, "not on the host"


class Limited:
    """Stands for a device of which a forward pass of more than ``most`` rows would need too much memory."""

    def __init__(self, most: int, *, slower_from: int = 2**30):
        self.most, self.slower_from, self.asked = most, slower_from, []

    def __call__(self, rows: int) -> float:
        self.asked.append(rows)
        if rows > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return rows / (1.0 if rows < self.slower_from else 2.0)


@pytest.mark.parametrize(
    ("most", "slower_from", "found"),
    [
        (1000, 2**30, 512),  # doubled until it doesn't fit
        (2**30, 256, 128),  # or until twice the rows are no faster
        (40, 2**30, 32),  # halved where the first guess doesn't fit
        (2**30, 2**30, 4096),  # never beyond what the data or good sense allow
    ],
)
def test_the_batch_is_found_and_memory_that_runs_out_is_survived(most: int, slower_from: int, found: int) -> None:
    device = Limited(most, slower_from=slower_from)
    assert find_batch(device, start=64, limit=4096) == found
    assert max(device.asked) <= 4096


def test_a_device_too_small_for_one_row_says_so() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        find_batch(Limited(0), start=64, limit=4096)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_batch_that_was_found_on_a_gpu_is_recorded(here: Path, small_teacher) -> None:
    teacher = small_teacher("teacher")
    dump(teacher, out="cache", views=1)
    batch = Cache("cache").manifest.identity.grid.batch
    assert batch in [2**k for k in range(13)]
    dump(teacher, out="cache", views=2)  # the same identity: with the recorded size
    assert Cache("cache").manifest.identity.grid.batch == batch


def test_a_batch_is_a_number_of_rows() -> None:
    assert CliRunner().invoke(command, ["--batch-size", "lots"]).exit_code == 2


@pytest.mark.timeout(20)
@pytest.mark.parametrize("full", [True, False])
def test_a_failure_while_the_queue_is_full_ends_the_dump(full: bool) -> None:
    """Nothing more is written then: whoever waited for room in the queue would wait forever."""
    written, begun = [], threading.Event()

    def fails(item: int) -> None:
        begun.wait(10)
        time.sleep(0.2)  # close is waiting by then
        written.append(item)
        raise OSError(errno.ENOSPC, "no space left on device")

    behind = WriteBehind[int](fails, 3)
    for number in range(4 if full else 1):  # one is being written, and three wait
        behind.put(number)
    begun.set()
    with pytest.raises(OSError, match="no space left"):
        behind.put(4) if full else behind.close()
    behind.abort()
    assert written == [0]


def test_a_failure_is_raised_by_the_next_put() -> None:
    failed = threading.Event()

    def fails(item: int) -> None:
        try:
            raise ValueError(f"item {item}")
        finally:
            failed.set()

    behind = WriteBehind[int](fails, 8)
    behind.put(7)
    failed.wait(10)
    time.sleep(0.2)  # the thread hands the error over after the function has ended
    with pytest.raises(ValueError, match="item 7"):
        behind.put(8)
    behind.abort()


def test_an_abort_ends_the_item_in_hand_and_drops_those_that_wait() -> None:
    written, begun, go_on = [], threading.Event(), threading.Event()

    def write(item: int) -> None:
        begun.set()
        go_on.wait(10)
        written.append(item)

    behind = WriteBehind[int](write, 8)
    for number in range(5):
        behind.put(number)
    begun.wait(10)
    threading.Timer(0.1, go_on.set).start()
    behind.abort()
    assert written == [0]


def test_items_are_written_in_order_by_one_thread_that_ends() -> None:
    written: list[int] = []
    before = threading.active_count()
    behind = WriteBehind[int](written.append, 2)
    for number in range(100):
        behind.put(number)
    behind.close()
    assert written == list(range(100))
    assert threading.active_count() == before
