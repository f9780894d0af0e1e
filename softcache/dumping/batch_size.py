"""How many rows a forward pass of the teacher takes, found on a GPU by trying."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from softcache.device import DTYPES
from softcache.dumping.forward import Forward
from softcache.dumping.identity import default_batch
from softcache.fields import Fields, Inputs
from softcache.models._arithmetic import Arithmetic
from softcache.models._network import Network
from softcache.views._open import Viewed

log = logging.getLogger(__name__)

LIMIT = 4096
GAIN = 1.05  # a doubled batch is only worth its memory if rows are computed so much faster


def pick_batch(
    network: Network,
    viewed: Viewed,
    device: torch.device,
    *,
    dtype: str,
    arithmetic: Arithmetic,
    columns: Sequence[str],
) -> int:
    """Rows of a forward pass of which these columns are kept, found by trying on ``device``, a GPU."""
    network = arithmetic.apply(network.to(device, DTYPES[dtype])).eval()
    forward = Forward(network, columns, device, amp=arithmetic.amp)
    one = viewed.batch(np.arange(1), 0).to(device)

    def run(rows: int) -> None:
        said = forward(_repeated(one, rows))
        _coded = [values.clone() for values in said.values()]  # a dump has both at once, coded and as they are
        forward.wait()

    found = find_batch(lambda rows: _speed(run, rows), start=default_batch(viewed, device.type), limit=LIMIT)
    log.info(f"batches of {found} rows, found by trying (--batch-size sets another)")
    return found


def _repeated(one: Inputs, rows: int) -> Inputs:
    """The inputs of one key, ``rows`` times."""

    def repeat(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.expand(rows, *tensor.shape[1:]).contiguous()

    return one.each(repeat) if isinstance(one, Fields) else repeat(one)


def find_batch(rows_per_second: Callable[[int], float], *, start: int, limit: int) -> int:
    """``start`` times a power of two, at most ``limit``; less than ``start`` only where that doesn't fit.

    ``rows_per_second`` runs a batch of so many rows and returns its speed. A size at which it raises torch's
    ``OutOfMemoryError`` is too large; larger ones are tried as long as each is ``GAIN`` times as fast as the last.
    Errors: ``OutOfMemoryError`` where not even one row fits.
    """
    rows, speed = start, _unless_too_large(rows_per_second, start)
    while speed is None and rows > 1:
        rows //= 2
        speed = _unless_too_large(rows_per_second, rows)
    if speed is None:
        rows_per_second(rows)  # raises, as it just did
    while speed is not None and start <= rows <= limit // 2:
        doubled = _unless_too_large(rows_per_second, 2 * rows)
        if doubled is None or doubled < GAIN * speed:
            break
        rows, speed = 2 * rows, doubled
    return rows


def _speed(run: Callable[[int], None], rows: int) -> float:
    """Rows per second of ``run(rows)``, after one run to warm up."""
    run(rows)
    began = time.perf_counter()
    run(rows)
    return rows / max(time.perf_counter() - began, 1e-9)


def _unless_too_large(rows_per_second: Callable[[int], float], rows: int) -> float | None:
    try:
        return rows_per_second(rows)
    except torch.OutOfMemoryError:
        pass
    if torch.cuda.is_available():  # not in the handler, because the error's traceback keeps the tensors alive
        torch.cuda.empty_cache()
    return None
