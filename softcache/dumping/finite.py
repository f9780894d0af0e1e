"""Whether what is kept of values stands for finite numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from softcache.cache.column import Column


def finite_keys(column: Column, values: torch.Tensor, arrays: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """(B,) bool, on the device of the values: of which keys, or places, all that is stored stands for a finite number.
    ``arrays``: what the column's codec makes of ``values`` (B, …)."""
    kept = list(arrays.values())
    if not all(array.is_floating_point() for array in kept):  # whole numbers don't say whether they stand for one
        kept = [values, column.decode(arrays)]
    flat = [array.reshape(len(array), math.prod(array.shape[1:])) for array in kept if array.is_floating_point()]
    checks = [torch.isfinite(array).all(1) for array in flat]
    return torch.stack(checks).all(0)
