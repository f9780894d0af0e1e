"""The dump's pipeline: worker processes make inputs, the teacher runs, a thread writes.

None of the three waits for another unless that one has fallen ``QUEUE_LIMIT`` batches behind.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from softcache.cache.agreement.recorded import Recorded, comparable
from softcache.cache.column import DIGEST, OFFSET
from softcache.cache.reader import Cache
from softcache.cache.schema import LOGITS, is_hint, layer_of
from softcache.cache.shares import own_values
from softcache.cache.writer import Block, BlockWriter
from softcache.console import bar
from softcache.dumping.codec_error import CodecErrors, Told
from softcache.dumping.finite import finite_keys
from softcache.dumping.forward import Forward
from softcache.dumping.grid import InRowOrder, rows_together
from softcache.dumping.waiting import Recently, Waited
from softcache.dumping.write_behind import WriteBehind
from softcache.errors import NumericsError
from softcache.fields import Inputs
from softcache.ragged import Int64, offsets_of
from softcache.stream.inputs import pick_workers
from softcache.stream.workers import (
    SharedViews,
    Shielded,
    follow_parent,
    for_workers,
    pick_start_method,
    started,
)
from softcache.views._open import Viewed

QUEUE_LIMIT = 8


class Progress(Protocol):
    """Who is told how far the work has got."""

    def advance(self, count: int, note: str = "") -> None:
        """``count`` more keys have been computed. ``note``: what is to be seen beside their number."""
        ...


@dataclass
class _Computed:
    """One batch on its way to the writer. Its arrays are on the host once ``ready``, a CUDA event, has happened.

    ``said``: by column, as the teacher said it, where the writer compares it with what is on disk.
    """

    writer: InRowOrder
    view: int
    rows: Int64
    columns: dict[str, dict[str, torch.Tensor]]
    finite: dict[str, torch.Tensor]
    said: dict[str, torch.Tensor]
    ready: Any

    def is_computed(self) -> bool:
        """Whether the device has done its work on it."""
        return self.ready is None or bool(self.ready.query())


def run_blocks(
    cache: Cache,
    viewed: Viewed,
    forward: Forward,
    blocks: Sequence[Block],
    *,
    workers: int = -1,
    recorded: Recorded | None = None,
    measured: Told = lambda column, now, before: None,
    progress: Progress | None = None,
) -> Waited:
    """Computes and commits all blocks; returns how long the teacher waited for what was being written.

    ``forward``: asked for the columns that are missing, and for one more where it is to be compared with what is there.
    ``recorded``: the comparison of this teacher with the cache's shards, if one has begun. ``measured`` is called with
    a column, its codec's error on the keys that were drawn of these blocks so far, and what was told before: from time
    to time, and before the last shard is finished. ``progress``: who is told how far it has
    got, by default a bar on the terminal.

    Errors: ``NumericsError`` with the key of the first values that are not finite. All shards that were finished before
    it stay.
    """
    grid, lengths = cache.manifest.identity.grid, viewed.lengths()
    groups = list(_groups(blocks, one_decode=not viewed.samples.in_memory))
    together = [rows_together(grid, group[0].first, group[0].rows, lengths) for group in groups]
    loader = _loader(viewed, groups, together, forward.device, pick_workers(viewed, workers))
    batches = started(loader)  # before there are threads, which a forked worker would lack
    recorded = recorded or Recorded(cache)
    digest = viewed.digest
    ragged = {name: cache.places(name) for name in forward.columns if cache.layout(name).ragged}
    errors = CodecErrors(cache, forward.columns, measured)
    opened: list[InRowOrder] = []
    behind = WriteBehind[_Computed](lambda item: _write(item, cache), QUEUE_LIMIT)
    began = time.monotonic()
    recently = Recently(began)
    try:
        keys = sum(block.rows for block in blocks)
        with bar("dump", keys, "keys") if progress is None else contextlib.nullcontext(progress) as shown:
            for group, batches_of_rows in zip(groups, together, strict=True):
                writers = {
                    block.view: InRowOrder(
                        BlockWriter(cache, block, recorded), block, sorted_by_length=grid.bucket is not None
                    )
                    for block in group
                }
                opened += writers.values()
                for rows in batches_of_rows:
                    for block, inputs in zip(group, next(batches), strict=True):
                        inputs = inputs.to(forward.device, non_blocking=True)
                        said = forward(inputs)
                        places = {name: of_all.take(rows) for name, of_all in ragged.items()}
                        for name, own in places.items():
                            said[name] = own_values(name, said[name], own, f"the teacher's {name}")
                        for name in block.columns:
                            errors.measure(name, block.view, rows, said[name], places.get(name))
                        computed = _compute(cache, block, digest(inputs), said)
                        for name in ragged.keys() & computed[0].keys():
                            computed[0][name][OFFSET] = torch.from_numpy(offsets_of(places[name]))
                        item = _Computed(writers[block.view], block.view, rows, *computed)
                        behind.put(item, item.is_computed)
                        shown.advance(len(inputs), recently.note(time.monotonic(), behind.waited))
                errors.tell_in_time()
        errors.tell()
        behind.close()
        return Waited(behind.waited, time.monotonic() - began, _new_bytes(cache, blocks))
    except BaseException:
        behind.abort()
        for writer in opened:
            writer.abort()
        raise


def _new_bytes(cache: Cache, blocks: Sequence[Block]) -> int:
    """Bytes of all arrays of these blocks' missing shards."""
    missing = [cache.shard_arrays(*shard) for block in blocks for shard in block.missing]
    return sum(math.prod(shape) * np.dtype(dtype).itemsize for arrays in missing for dtype, shape in arrays.values())


def _groups(blocks: Sequence[Block], *, one_decode: bool) -> Iterator[list[Block]]:
    """Blocks that are computed together: with ``one_decode`` all views of the same rows, from one decode of each."""
    held: list[Block] = []
    for block in blocks:
        if held and not (one_decode and held[0].first == block.first):
            yield held
            held = []
        held.append(block)
    if held:
        yield held


def _compute(
    cache: Cache, block: Block, seen: torch.Tensor, said: dict[str, torch.Tensor]
) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, torch.Tensor], dict[str, torch.Tensor], Any]:
    """A batch's columns, which of their rows are finite, what is on disk already as the teacher says it now (the
    writer compares one column with it), and the event after which all of these are on the host. Nothing here waits for
    the device. ``seen``: digests of the inputs. Of ragged columns all of these are of places.
    """
    there = [name for name in comparable(cache) if name in said and name not in block.columns][:1]
    wanted = [cache.layout(name) for name in said if name in there or name in block.columns]
    columns = {column.name: column.encode(said[column.name]) for column in wanted}
    finite = {column.name: finite_keys(column, said[column.name], columns[column.name]) for column in wanted}
    for arrays in columns.values():
        arrays[DIGEST] = seen
    to_host = _to_host if seen.device.type == "cuda" else torch.Tensor.cpu
    columns = {column: {name: to_host(t) for name, t in arrays.items()} for column, arrays in columns.items()}
    finite = {name: to_host(t) for name, t in finite.items()}
    raw = {name: to_host(said[name]) for name in there}
    event = None
    if seen.device.type == "cuda":
        event = torch.cuda.Event()
        event.record()
    return columns, finite, raw, event


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)


def _write(item: _Computed, cache: Cache) -> None:
    """Errors: ``NumericsError`` for a row that is not finite; what ``BlockWriter.write`` raises."""
    if item.ready is not None:
        item.ready.synchronize()
    for name, finite in item.finite.items():
        if not bool(finite.all()):
            row, offset = int((~finite).nonzero()[0, 0]), item.columns[name].get(OFFSET)
            if offset is not None:
                row = int(torch.searchsorted(offset, row, right=True)) - 1
            raise NumericsError(_not_finite(cache, name, int(item.rows[row]), item.view))
    arrays = {
        column: {n: t.numpy().astype(np.uint32) if n == DIGEST else t.numpy() for n, t in tensors.items()}
        for column, tensors in item.columns.items()
    }
    item.writer.write(item.rows, arrays, item.said)


def _not_finite(cache: Cache, name: str, row: int, view: int) -> str:
    codec = cache.manifest.state.columns[name].codec
    option = f"--hint {layer_of(name)}:codec=fp32" if is_hint(name) else f"--output {name}:codec=fp32"
    what, option = (name, "--codec fp32") if name == LOGITS else (f"values of {name}", option)
    return (
        f"row {row} in view {view}: the teacher's {what} are not finite as {codec}: try {option}, then "
        "--amp off; if they still aren't, the teacher's weights or normalization are wrong"
    )


class _Grid(Dataset):
    """Item k is the k-th batch of the dump: its rows' inputs in each view of the group, from one decode of each row."""

    def __init__(
        self, viewed: Viewed | SharedViews, groups: Sequence[Sequence[Block]], together: Sequence[Sequence[Int64]]
    ):
        self._source = viewed
        self._items = [
            (rows, [block.view for block in group])
            for group, batches in zip(groups, together, strict=True)
            for rows in batches
        ]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, number: int) -> list[Inputs]:
        rows, views = self._items[number]
        viewed = self._source.viewed if isinstance(self._source, SharedViews) else self._source
        return list(viewed.batch_views(rows, views))


def _loader(
    viewed: Viewed,
    groups: Sequence[Sequence[Block]],
    together: Sequence[Sequence[Int64]],
    device: torch.device,
    workers: int,
) -> DataLoader:
    method = pick_start_method("auto")
    return DataLoader(
        Shielded(_Grid(for_workers(viewed, method) if workers else viewed, groups, together)),
        batch_size=None,
        shuffle=False,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=device.type == "cuda",
        multiprocessing_context=method if workers else None,
        worker_init_fn=follow_parent,
    )
