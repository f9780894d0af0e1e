"""The batch size of a forward pass, found by trying: large enough to keep a device busy, small enough to fit."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

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
