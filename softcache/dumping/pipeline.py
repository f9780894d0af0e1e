"""The dump's pipeline: workers make pixels, the teacher runs, a thread writes. No one waits for a slower one's disk."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

from softcache.cache.agreement.recorded import Recorded
from softcache.cache.reader import Cache
from softcache.cache.schema import LOGITS, hint_column
from softcache.cache.writer import Block, BlockWriter
from softcache.console import bar
from softcache.device import autocast
from softcache.errors import NumericsError
from softcache.models._hooks import Taps
from softcache.models._network import Network
from softcache.stream.inputs import pick_workers
from softcache.stream.workers import (
    SharedViews,
    Shielded,
    follow_parent,
    for_workers,
    pick_start_method,
    raising,
    starting,
)
from softcache.views._digest import digest
from softcache.views._viewed import ViewedDataset

QUEUE_LIMIT = 8
MEASURED_KEYS = 4096
TEMPERATURES = (1, 2, 4, 8)


class Forward:
    """The teacher as a function of pixels: logits and hints, in inference mode."""

    def __init__(
        self,
        network: Network,
        layers: Sequence[str],
        device: torch.device,
        *,
        amp: str = "off",
        compiled: bool = False,
        hint_dtype: str = "float16",
    ):
        self.network, self.layers, self.device, self.amp = network, list(layers), device, amp
        self.hint_dtypes = dict.fromkeys(self.layers, getattr(torch, hint_dtype))
        self._run: Any = torch.compile(network) if compiled and not self.layers else network

    @torch.inference_mode()
    def __call__(self, pixels: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """(B, H, W, C) uint8 → logits (B, C) float32 and each layer's activations in its dtype on disk."""
        with ExitStack() as stack:
            stack.enter_context(autocast(self.device, self.amp))
            taps = stack.enter_context(Taps(self.network.model, self.layers)) if self.layers else {}
            logits = self._run(pixels)
            hints = {layer: taps[layer].to(self.hint_dtypes[layer]) for layer in self.layers}
        return logits.float(), hints

    def wait(self) -> None:
        """Until the device has done all that it was asked to."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass
class _Computed:
    """One batch on its way to the writer: arrays on the host once ``ready``. ``logits``: before their codec, where the
    writer compares them with those that are on disk."""

    writer: BlockWriter
    view: int
    first: int
    columns: dict[str, dict[str, torch.Tensor]]
    finite: dict[str, torch.Tensor]
    logits: torch.Tensor | None
    ready: Any


def run_blocks(
    cache: Cache,
    viewed: ViewedDataset,
    forward: Forward,
    blocks: Sequence[Block],
    *,
    workers: int = -1,
    recorded: Recorded | None = None,
    measured: Callable[[dict[str, float], int], None] = lambda error, keys: None,
) -> None:
    """Computes and commits all blocks. ``recorded``: what has compared the teacher with the cache so far, if anything
    has. ``measured`` is told the codec's error on the first keys and how many those were: as soon as they are enough,
    for a dump may be stopped at any time, else before the last shard is finished.

    Errors: ``NumericsError`` with the key, after all shards that were finished before it.
    """
    batch = cache.manifest.identity.teacher.numerics.batch
    for layer, hint in cache.manifest.state.hints.items():
        forward.hint_dtypes[layer] = getattr(torch, hint.dtype)
    groups = list(_groups(blocks, one_decode=viewed.samples.images is None))
    loader = _loader(viewed, groups, batch, forward.device, pick_workers(viewed, workers))
    with starting():
        batches = raising(iter(loader))  # before there are threads, which a forked worker would lack
    recorded = recorded or Recorded(cache)
    measure, writer = _CodecError(cache.codec), _WriterThread(cache)
    try:
        with bar("dump", sum(block.rows for block in blocks), "keys") as shown:
            for group in groups:
                writers = {block.view: BlockWriter(cache, block, recorded) for block in group}
                writer.opened(list(writers.values()))
                for first in range(group[0].first, group[0].first + group[0].rows, batch):
                    for block, pixels in zip(group, next(batches), strict=True):
                        pixels = pixels.to(forward.device, non_blocking=True)
                        logits, hints = forward(pixels)
                        if measure(logits):
                            measured(*measure.result())
                        item = _compute(cache, block, pixels, logits, hints)
                        writer.put(_Computed(writers[block.view], block.view, first, *item))
                        shown.advance(len(pixels))
        if measure.unfinished:
            measured(*measure.result())
        writer.close()
    except BaseException:
        writer.abort()
        raise


def _groups(blocks: Sequence[Block], *, one_decode: bool) -> Iterator[list[Block]]:
    """Blocks that are computed together: all views of the same rows where an image has to be decoded for them."""
    held: list[Block] = []
    for block in blocks:
        if held and not (one_decode and held[0].first == block.first):
            yield held
            held = []
        held.append(block)
    if held:
        yield held


def _compute(
    cache: Cache, block: Block, pixels: torch.Tensor, logits: torch.Tensor, hints: dict[str, torch.Tensor]
) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, torch.Tensor], torch.Tensor | None, Any]:
    """What goes to the writer, on its way to the host without a wait."""
    seen = digest(pixels)
    # also logits that are on disk already: the writer compares them
    columns = {LOGITS: {f"logits/{name}": values for name, values in cache.codec.encode(logits).items()}}
    for layer, values in hints.items():
        if hint_column(layer) in block.columns:
            columns[hint_column(layer)] = {"hint/values": values}
    finite = {
        name: torch.isfinite(values.flatten(1)).all(1)
        for arrays in columns.values()
        for name, values in arrays.items()
        if values.is_floating_point()
    }
    for arrays in columns.values():
        arrays["digest"] = seen
    to_host = _to_host if pixels.device.type == "cuda" else torch.Tensor.cpu
    columns = {column: {name: to_host(t) for name, t in arrays.items()} for column, arrays in columns.items()}
    finite = {name: to_host(t) for name, t in finite.items()}
    raw = None if LOGITS in block.columns else to_host(logits)
    event = None
    if pixels.device.type == "cuda":
        event = torch.cuda.Event()
        event.record()
    return columns, finite, raw, event


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)


class _WriterThread:
    """Takes computed batches in order from a bounded queue and writes them."""

    def __init__(self, cache: Cache):
        self._cache = cache
        self._queue: queue.Queue[_Computed | None] = queue.Queue(QUEUE_LIMIT)
        self._failure: BaseException | None = None
        self._writers: list[BlockWriter] = []
        self._thread = threading.Thread(target=self._work, name="softcache-writer", daemon=True)
        self._thread.start()

    def opened(self, writers: list[BlockWriter]) -> None:
        """So that unfinished shards can be dropped."""
        self._writers += writers

    def put(self, item: _Computed | None) -> None:
        """Waits for a place in the queue, not for a thread that takes nothing from it any more. ``None`` is the end.

        Errors: whatever stopped the thread.
        """
        while True:
            if self._failure is not None:
                raise self._failure
            try:
                self._queue.put(item, timeout=0.5)
                return
            except queue.Full:
                continue

    def close(self) -> None:
        """Waits for the last batch.

        Errors: whatever stopped the thread.
        """
        self.put(None)
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def abort(self) -> None:
        """Lets the batch in hand end, then drops what is unfinished."""
        self._failure = self._failure or RuntimeError("aborted")
        self._thread.join()
        for writer in self._writers:
            writer.abort()

    def _work(self) -> None:
        while self._failure is None:
            try:
                item = self._queue.get(timeout=0.2)
            except queue.Empty:
                continue
            if item is None:
                return
            try:
                self._write(item)
            except BaseException as error:  # handed to the main thread, which raises it
                self._failure = error

    def _write(self, item: _Computed) -> None:
        if item.ready is not None:
            item.ready.synchronize()
        for name, finite in item.finite.items():
            if not bool(finite.all()):
                row = item.first + int((~finite).nonzero()[0, 0])
                raise NumericsError(_advice(name, row, item.view, self._cache.manifest.identity.codec))
        arrays = {
            column: {n: t.numpy().astype(np.uint32) if n == "digest" else t.numpy() for n, t in tensors.items()}
            for column, tensors in item.columns.items()
        }
        item.writer.write(item.first, arrays, item.logits)


def _advice(name: str, row: int, view: int, codec: str) -> str:
    what, wider = ("hint", "--hint-dtype float32") if name.startswith("hint") else ("logits", "--codec fp32")
    return (
        f"row {row} in view {view}: the teacher's {what} are not finite as {codec if what == 'logits' else 'stored'}: "
        f"try {wider}, then --amp off; if they still aren't, the teacher's weights or normalization are wrong"
    )


class _CodecError:
    """How far decoded logits are from the teacher's, on the first keys, as a student's loss would see it."""

    def __init__(self, codec: Any):
        self._codec = codec
        self._found: dict[int, list[torch.Tensor]] = {T: [] for T in TEMPERATURES}
        self._agree: list[torch.Tensor] = []
        self._seen = 0

    @property
    def unfinished(self) -> bool:
        """Whether fewer keys than wanted were seen, but some."""
        return 0 < self._seen < MEASURED_KEYS

    @torch.inference_mode()
    def __call__(self, logits: torch.Tensor) -> bool:
        """Whether these were the last that are measured."""
        if self._seen >= MEASURED_KEYS:
            return False
        self._seen += len(logits)
        decoded = self._codec.decode(self._codec.encode(logits))
        if logits.device.type == "mps":  # which has no float64
            logits, decoded = logits.cpu(), decoded.cpu()
        for T, found in self._found.items():
            p, q = F.log_softmax(logits.double() / T, 1), F.log_softmax(decoded.double() / T, 1)
            found.append((p.exp() * (p - q)).sum(1))
        self._agree.append((logits.argmax(1) == decoded.argmax(1)).double())
        return self._seen >= MEASURED_KEYS

    def result(self) -> tuple[dict[str, float], int]:
        """Mean and 99th percentile of KL(teacher‖decoded) at T = 1, 2, 4, 8, the share of equal top-1; of so many."""
        report = {}
        for T, found in self._found.items():
            values = torch.cat(found).clamp_min(0).cpu()
            report[f"kl_mean_T{T}"] = float(values.mean())
            report[f"kl_p99_T{T}"] = float(torch.quantile(values, 0.99))
        report["top1_agreement"] = float(torch.cat(self._agree).mean())
        return report, self._seen


class _Grid(Dataset):
    """Batch k of the dump: the views of its rows, made from one decode of each."""

    def __init__(self, viewed: ViewedDataset | SharedViews, groups: Sequence[Sequence[Block]], batch: int):
        self._source = viewed
        self._items = [
            (first, min(batch, group[0].first + group[0].rows - first), [block.view for block in group])
            for group in groups
            for first in range(group[0].first, group[0].first + group[0].rows, batch)
        ]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, number: int) -> list[torch.Tensor]:
        first, rows, views = self._items[number]
        viewed = self._source.viewed if isinstance(self._source, SharedViews) else self._source
        return viewed.batch_views(np.arange(first, first + rows), views)


def _loader(
    viewed: ViewedDataset, groups: Sequence[Sequence[Block]], batch: int, device: torch.device, workers: int
) -> DataLoader:
    method = pick_start_method("auto")
    return DataLoader(
        Shielded(_Grid(for_workers(viewed, method) if workers else viewed, groups, batch)),
        batch_size=None,
        shuffle=False,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=device.type == "cuda",
        multiprocessing_context=method if workers else None,
        worker_init_fn=follow_parent,
    )
