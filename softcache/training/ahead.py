"""Batches made on a stream of their own, so that copies to a GPU run while it computes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from softcache.training.stream import Batch


def beside(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches; on a GPU they are made on a side stream.

    The host is ahead of the device: when it asks for a batch, the device is still busy with the one before, and what
    makes the new one is queued beside that work and not behind it.
    """
    if device.type != "cuda":
        yield from batches
        return
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))  # for what an epoch finds on the device
    while True:
        with torch.cuda.stream(side):
            batch = next(batches, None)
        if batch is None:
            return
        current = torch.cuda.current_stream(device)
        current.wait_stream(side)
        for tensor in _tensors(vars(batch)):
            if tensor.is_cuda:
                tensor.record_stream(current)  # its memory isn't given to the next batch while it is in use
        yield batch


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)
    elif hasattr(value, "__dict__"):
        yield from _tensors(vars(value))
