"""What the teacher says about a batch of keys: read from caches, held on the device, or asked live.

All three have the same face: ``begin(view)`` before an epoch, then ``say(rows, on_device, pixels)`` per batch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import torch

from softcache.cache.reader import Cache, ColumnReader
from softcache.cache.schema import LOGITS, hint_column
from softcache.models._hooks import Taps
from softcache.models._network import Network
from softcache.training.config import autocast


@dataclass
class Said:
    """``logits``: one (B, C) float32 a teacher. ``hints``: layer → (B, ...). ``digests``: one (B,) int64 a cache."""

    logits: list[torch.Tensor] = field(default_factory=list)
    hints: dict[str, torch.Tensor] = field(default_factory=dict)
    digests: list[torch.Tensor] = field(default_factory=list)


class CachedTeacher:
    """One or several caches. With ``hold`` the coded arrays of a view lie on the device; otherwise each batch is
    gathered from the memory maps in this process and copied."""

    def __init__(
        self,
        caches: Sequence[Cache],
        hints: dict[str, Cache],
        device: torch.device,
        *,
        hold: bool,
        keep_views: int = 1,
    ):
        self.seconds = 0.0  # nobody is asked: the teacher costs nothing here
        self._device = device
        self._hold = hold
        self._keep = keep_views
        self._codecs = [cache.codec for cache in caches]
        self._logits = [cache.column(LOGITS) for cache in caches]
        self._hints = {layer: cache.column(hint_column(layer)) for layer, cache in hints.items()}
        self._held: dict[int, list[dict[str, torch.Tensor]]] = {}
        self._view = -1

    @staticmethod
    def bytes_per_view(caches: Sequence[Cache], hints: dict[str, Cache]) -> int:
        """What ``hold`` takes for each view that is kept."""
        columns = [(cache, LOGITS) for cache in caches] + [(c, hint_column(layer)) for layer, c in hints.items()]
        total = 0
        for cache, column in columns:
            for dtype, shape in cache.arrays(column, cache.rows).values():
                total += int(np.prod(shape)) * np.dtype(dtype).itemsize
        return total

    def begin(self, view: int) -> None:
        """Makes a view's arrays ready; those of other views may be dropped."""
        if view != self._view and not self._hold:
            for reader in self._readers():
                reader.release(self._view)
        self._view = view
        if self._hold and view not in self._held:
            if len(self._held) >= self._keep:
                self._held.pop(next(iter(self._held)))
            everything = np.arange(self._logits[0].cache.rows if self._logits else self._readers()[0].cache.rows)
            self._held[view] = [self._ready(reader.gather(view, everything)) for reader in self._readers()]
            for reader in self._readers():
                reader.release(view)

    def say(self, rows: np.ndarray, on_device: torch.Tensor, pixels: torch.Tensor) -> Said:
        """``rows`` (B,) int64, the same on the device; ``pixels`` are not looked at."""
        if self._hold:
            found = [{k: v.index_select(0, on_device) for k, v in held.items()} for held in self._held[self._view]]
        else:
            found = [self._ready(reader.gather(self._view, rows)) for reader in self._readers()]
        said = Said()
        for codec, arrays in zip(self._codecs, found, strict=False):
            said.digests.append(arrays.pop("digest"))
            said.logits.append(codec.decode({name.removeprefix("logits/"): a for name, a in arrays.items()}))
        for layer, arrays in zip(self._hints, found[len(self._codecs) :], strict=True):
            said.digests.append(arrays["digest"])
            said.hints[layer] = arrays["hint/values"].float()
        return said

    def _readers(self) -> list[ColumnReader]:
        return [*self._logits, *self._hints.values()]

    def _ready(self, arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        """Arrays on the device; digests as int64, since torch has no arithmetic on uint32."""
        ready = {}
        for name, array in arrays.items():
            tensor = torch.from_numpy(array.astype(np.int64) if name == "digest" else array)
            if self._device.type == "cuda":
                tensor = tensor.pin_memory().to(self._device, non_blocking=True)
            ready[name] = tensor.to(self._device)
        return ready


class LiveTeacher:
    """The teacher in the loop (``--online``): the yardstick. It gets the care that a dump gives it: evaluation mode,
    ``inference_mode``, the same autocast."""

    def __init__(self, network: Network, hints: Sequence[str], device: torch.device, amp: str = "off"):
        self.seconds = 0.0
        self._network = network.eval().to(device)
        self._hints = list(hints)
        self._device = device
        self._amp = amp

    def begin(self, view: int) -> None:
        """Nothing to prepare: any view will do."""

    def say(self, rows: np.ndarray, on_device: torch.Tensor, pixels: torch.Tensor) -> Said:
        """Runs the teacher on ``pixels`` (B, H, W, C) uint8."""
        began = time.perf_counter()
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            stack.enter_context(autocast(self._device, self._amp))
            taps = stack.enter_context(Taps(self._network.model, self._hints)) if self._hints else {}
            logits = self._network(pixels)
            hints = {layer: taps[layer].float() for layer in self._hints}
        self.seconds += time.perf_counter() - began
        # Tensors made in inference mode can't be saved for a backward pass; a copy can.
        return Said([logits.float().clone()], {layer: value.clone() for layer, value in hints.items()})
