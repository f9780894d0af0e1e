"""Targets of a batch of keys: read from caches, held on the device, or computed by a live teacher.

Each source has ``begin(batches)``, which is called before an epoch, and ``targets(part, on_device, inputs)``, which is
called for each part of a batch (``batches.TargetSource``).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from softcache.cache.blocks import BlockReader
from softcache.cache.column import DIGEST, OFFSET
from softcache.cache.column_reader import ColumnReader
from softcache.cache.reader import Cache
from softcache.cache.schema import LOGITS, hint_column
from softcache.cache.shares import own_values
from softcache.device import autocast
from softcache.fields import Inputs
from softcache.losses._target import Target, joined_targets
from softcache.models._hooks import Taps
from softcache.models._network import Network
from softcache.ragged import Int64, on_device
from softcache.stream.memory import available_memory, view_bytes
from softcache.stream.parts import Part, Parts
from softcache.stream.transfer import PinnedBuffers, host_tensor, unsigned
from softcache.stream.windows import Windows


@dataclass
class Targets:
    """``outputs``: by name, one (B, …) float32 a teacher, or ``Leaders`` where a cache keeps no more. ``hints``:
    layer → (B, ...). ``digests``: one (B,) int64 a column. Where rows have lengths of their own, outputs and hints are
    (P, …), the places of all rows end to end; of hints of a share of the rows, those of the rows that are in it."""

    outputs: dict[str, list[Target]] = field(default_factory=dict)
    hints: dict[str, torch.Tensor] = field(default_factory=dict)
    digests: list[torch.Tensor] = field(default_factory=list)


def joined(parts: Sequence[Targets]) -> Targets:
    """The targets of a batch whose parts have these; of several parts the outputs alone, because only some of them have
    digests and hints."""
    if len(parts) == 1:
        return parts[0]
    of_teachers = {name: zip(*(part.outputs[name] for part in parts), strict=True) for name in parts[0].outputs}
    return Targets({name: [joined_targets(some) for some in each] for name, each in of_teachers.items()})


class CachedTargets:
    """Reads targets from one or several caches: ``outputs``, by name, from those that are given for it.

    With ``hold`` the coded arrays of up to ``keep_views`` views lie on the device. Otherwise each batch is gathered in
    this process, from memory maps or, with ``blocks``, from blocks of rows that are read ahead.
    """

    def __init__(
        self,
        outputs: Mapping[str, Sequence[Cache]],
        hints: Mapping[str, Cache],
        device: torch.device,
        *,
        hold: bool,
        keep_views: int = 1,
        blocks: Windows | None = None,
    ):
        self.name = f"held on {device}" if hold else "read in blocks, ahead" if blocks else "gathered from memory maps"
        self.seconds = 0.0  # no teacher runs
        self._device = device
        self._hold = hold
        self._keep = keep_views
        self._windows = blocks
        self._outputs = {name: [cache.column(name) for cache in caches] for name, caches in outputs.items()}
        self._hints = {layer: cache.column(hint_column(layer)) for layer, cache in hints.items()}
        self._held: dict[int, list[dict[str, torch.Tensor]]] = {}
        self._reading: dict[int, list[BlockReader]] = {}
        self._pinned_buffers = [PinnedBuffers(device) for _ in self._readers()] if device.type == "cuda" else []
        self._views: tuple[int, ...] = ()

    @property
    def compared(self) -> Sequence[Cache]:
        """The cache of each of the digests that ``targets`` gives."""
        return [reader.cache for reader in self._readers()]

    @staticmethod
    def bytes_per_view(outputs: Mapping[str, Sequence[Cache]], hints: Mapping[str, Cache]) -> int:
        """Bytes that ``hold`` takes for each view that is kept."""
        columns = [(cache, name) for name, caches in outputs.items() for cache in caches]
        columns += [(cache, hint_column(layer)) for layer, cache in hints.items()]
        return sum(view_bytes(cache, column) for cache, column in columns)

    def begin(self, batches: Sequence[Parts]) -> None:
        """Prepares the arrays of an epoch's views and drops those of others where memory is short. ``batches``: those
        that targets will be asked for, in this order, in which blocks are read ahead."""
        views = list(dict.fromkeys(view for parts in batches for part in parts for view in part.views))
        before = set(self._views)
        for view in before - set(views):
            for reader in self._readers():
                reader.release(view)
        self._views = tuple(views)
        if self._hold:
            for view in views:
                self._keep_view(view, also=views)
        elif self._windows is not None:
            self._reading = {}  # frees the last epoch's blocks before new ones are read
            rows, window = self._windows.block_rows, self._windows.window
            for view in views:
                order = np.concatenate([part.rows for parts in batches for part in parts if view in part.views])
                self._reading[view] = [BlockReader(r.cache, r.name, view, order, rows, window) for r in self._readers()]
        else:
            for reader in self._readers():
                reader.keep(len(views), available_memory() // 2 // len(self._readers()))
                for view in set(views) - before:
                    reader.ahead(view)

    def soon(self, views: Sequence[int]) -> None:
        """Has views of the next epoch fetched, where they come from a store and are not held on the device."""
        new = [view for view in views if view not in self._views and view not in self._held]
        if self._windows is None:
            for reader in self._readers():
                reader.soon(new)

    def _keep_view(self, view: int, also: Sequence[int]) -> None:
        """Puts a view's arrays on the device. If there are too many views then, the oldest ones are dropped."""
        if view in self._held:
            return
        for old in list(self._held):
            if len(self._held) >= max(self._keep, len(also)) and old not in also:
                del self._held[old]
        everything = np.arange(self._readers()[0].cache.rows)
        for reader in self._readers():
            reader.ahead(view)
        self._held[view] = [self._ready(reader.gather(view, everything)) for reader in self._readers()]
        for reader in self._readers():
            reader.release(view)

    def targets(self, part: Part, rows: torch.Tensor, inputs: Inputs) -> Targets:
        """``rows`` (B,) int64 on the device: those of the part's keys; ``inputs`` are not used."""
        if self._hold:
            found = [self._select(number, part, rows) for number in range(len(self._readers()))]
        else:
            found = [self._gather(number, part) for number in range(len(self._readers()))]
        targets = Targets()
        targets.digests = [unsigned(held["digest"]) for held in found]
        arrays = iter(found)
        targets.outputs = {
            name: [reader.target(next(arrays)) for reader in readers] for name, readers in self._outputs.items()
        }
        targets.hints = {
            layer: reader.decode(held) for (layer, reader), held in zip(self._hints.items(), arrays, strict=True)
        }
        return targets

    def _readers(self) -> list[ColumnReader]:
        return [*itertools.chain(*self._outputs.values()), *self._hints.values()]

    def _select(self, number: int, part: Part, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """A part of one column, from what lies on the device."""
        reader, held = self._readers()[number], [self._held[view][number] for view in part.views]
        of_views = rows.chunk(len(held)) if len(held) > 1 else (rows,)
        index = of_views
        if reader.ragged is not None:  # the same places in every view
            index = (on_device(reader.ragged.index(part.rows), self._device),) * len(held)
        found = {}
        for name in held[0]:
            where = of_views if name == DIGEST else index
            selected = [h[name].index_select(0, at) for h, at in zip(held, where, strict=True)]
            found[name] = selected[0] if len(selected) == 1 else torch.cat(selected)
        return found

    def _gather_ragged(self, number: int, part: Part) -> dict[str, torch.Tensor]:
        """As ``_gather``, of a column in which rows have lengths of their own: into memory of their own, as there is
        no telling how much the next batch takes."""
        if self._reading:
            found = [self._reading[view][number].gather(part.rows) for view in part.views]
        else:
            found = [self._readers()[number].gather(view, part.rows) for view in part.views]
        joined = {name: np.concatenate([arrays[name] for arrays in found]) for name in found[0] if name != OFFSET}
        if self._device.type == "cuda":
            return {
                name: host_tensor(array).pin_memory().to(self._device, non_blocking=True)
                for name, array in joined.items()
            }
        return self._ready(joined)

    def _gather(self, number: int, part: Part) -> dict[str, torch.Tensor]:
        """A part of one column, on the device. For a GPU rows are gathered into pinned memory; on a CPU each part has
        its own memory, because reusing it was measured to be no faster."""
        reader = self._readers()[number]
        if reader.ragged is not None:
            return self._gather_ragged(number, part)
        pinned = self._pinned_buffers[number] if self._pinned_buffers else None
        arrays = pinned.arrays(reader.cache.arrays(reader.name, len(part))) if pinned else reader.empty(len(part))
        images = len(part.rows)
        for at, view in enumerate(part.views):
            out = {name: array[at * images : (at + 1) * images] for name, array in arrays.items()}
            if self._reading:
                self._reading[view][number].gather(part.rows, out)
            else:
                reader.gather(view, part.rows, out)
        return pinned.send(arrays) if pinned else self._ready(arrays)

    def _ready(self, arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        return {name: host_tensor(array).to(self._device) for name, array in arrays.items() if name != OFFSET}


class LiveTargets:
    """Runs the teacher in the training loop (``--online``), as a dump would: in evaluation mode, under
    ``inference_mode`` and the same autocast. What a cache saves is measured against it."""

    def __init__(
        self,
        network: Network,
        outputs: Sequence[str],
        hints: Sequence[str],
        device: torch.device,
        amp: str = "off",
        *,
        places: Mapping[str, Int64] | None = None,
    ):
        """``places``: column → (N,), how many places each row has where rows have lengths of their own."""
        self.name = "from the live teacher"
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._network = network.eval().to(device)
        self._outputs, self._hints = list(outputs), list(hints)
        self._device = device
        self._amp = amp
        self._places = places or {}
        self.compared: Sequence[Cache] = ()  # it sees the very inputs

    @property
    def seconds(self) -> float:
        """Seconds that the teacher has computed. On a GPU reading it waits for the device."""
        for began, ended in self._events:
            ended.synchronize()
            self._seconds += began.elapsed_time(ended) / 1000
        self._events.clear()
        return self._seconds

    def begin(self, batches: Sequence[Parts]) -> None:
        """Prepares nothing: the teacher answers for any inputs."""

    def soon(self, views: Sequence[int]) -> None:
        """Fetches nothing, as ``begin``."""

    def targets(self, part: Part, rows: torch.Tensor, inputs: Inputs) -> Targets:
        """Runs the teacher on ``inputs``."""
        with self._timed(), ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            stack.enter_context(autocast(self._device, self._amp))
            taps = stack.enter_context(Taps(self._network.model, self._hints)) if self._hints else {}
            outputs = self._network.outputs(inputs, self._outputs or [LOGITS])
            said = {name: outputs[name] for name in self._outputs}
            said |= {hint_column(layer): taps[layer] for layer in self._hints}
            for column in self._places.keys() & said.keys():
                counts = self._places[column].take(part.key_rows)
                said[column] = own_values(column, said[column], counts, f"the live teacher's {column}")
        # Tensors made in inference mode can't be saved for a backward pass; a copy can.
        kept = {column: values.float().clone() for column, values in said.items()}
        return Targets(
            {name: [kept[name]] for name in self._outputs}, {layer: kept[hint_column(layer)] for layer in self._hints}
        )

    @contextmanager
    def _timed(self) -> Iterator[None]:
        if self._device.type != "cuda":
            began = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - began
            return
        pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        pair[0].record()
        yield
        pair[1].record()
        self._events.append(pair)
