"""How many rows a teacher takes at once, where nobody says: on a GPU it is found by trying."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from softcache.device import DTYPES
from softcache.dumping.identity import default_batch
from softcache.dumping.pipeline import Forward
from softcache.models._network import Network
from softcache.views._viewed import ViewedDataset

log = logging.getLogger(__name__)

LIMIT = 4096


def pick_batch(
    network: Network,
    viewed: ViewedDataset,
    device: torch.device,
    *,
    dtype: str,
    amp: str,
    channels_last: bool,
    hints: Sequence[str],
) -> int:
    """Rows of a forward pass with these layers' activations kept, found by trying on ``device``, a GPU."""
    network = network.to(device, DTYPES[dtype]).eval()
    if channels_last:
        network.to(memory_format=torch.channels_last)
    forward = Forward(network, list(hints), device, amp=amp)
    one = viewed.batch(np.arange(1), 0).to(device)
    start = default_batch(viewed, device.type)
    speed = forward_speed(lambda rows: forward(one.expand(rows, -1, -1, -1).contiguous()), forward.wait)
    found = find_batch(speed, start=start, limit=LIMIT)
    log.info(f"batches of {found} rows, found by trying (--batch-size sets another)")
    return found


GAIN = 1.05  # twice the rows have to be so much faster per row to be worth their memory


def find_batch(rows_per_second: Callable[[int], float], *, start: int, limit: int) -> int:
    """A power-of-two multiple (or part) of ``start``, at most ``limit``.

    ``rows_per_second(rows)`` runs a batch of so many rows and says how fast that was; where it raises torch's
    ``OutOfMemoryError`` the next smaller size is taken. Errors: that one, where not even one row fits.
    """
    best, rows = 0.0, start
    while True:
        speed = _tried(rows_per_second, rows)
        if speed is not None:
            break
        if rows == 1:
            rows_per_second(1)  # raises, as it just did
        rows //= 2
    best = speed
    while rows * 2 <= limit and rows >= start:
        speed = _tried(rows_per_second, rows * 2)
        if speed is None or speed < GAIN * best:
            break
        best, rows = speed, rows * 2
    return rows


def forward_speed(run: Callable[[int], object], wait: Callable[[], None]) -> Callable[[int], float]:
    """Rows per second of ``run(rows)``, after one run to warm up."""

    def measure(rows: int) -> float:
        run(rows)
        wait()
        began = time.perf_counter()
        run(rows)
        wait()
        return rows / max(time.perf_counter() - began, 1e-9)

    return measure


def _tried(rows_per_second: Callable[[int], float], rows: int) -> float | None:
    try:
        return rows_per_second(rows)
    except torch.OutOfMemoryError:
        pass
    if torch.cuda.is_available():  # outside of the handler, whose traceback keeps the tensors alive
        torch.cuda.empty_cache()
    return None
