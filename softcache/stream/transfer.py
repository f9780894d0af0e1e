"""From the host to a GPU: buffers in pinned memory, and a side stream on which batches are copied ahead."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
import torch

T = TypeVar("T")


class PinnedBuffers:
    """Two sets of buffers in pinned memory that rows of a cache are gathered into on their way to a GPU.

    Gathering into memory that is pinned once saves a copy for each batch; of two sets, one is filled while the other
    is still being sent. What ``send`` returned lies on the device and is the caller's own.
    """

    def __init__(self, device: torch.device, *, pinned: bool = True):
        self._device, self._pinned = device, pinned
        self._sets: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]] = ({}, {})
        self._sent: list[Any] = [None, None]
        self._turn = 0

    def arrays(self, wanted: dict[str, tuple[str, tuple[int, ...]]]) -> dict[str, np.ndarray]:
        """Buffers of these dtypes and shapes (rows first), to be filled and then sent; waits for the last but one
        sending to be over."""
        self._turn ^= 1
        if self._sent[self._turn] is not None:
            self._sent[self._turn].synchronize()
        held, found = self._sets[self._turn], {}
        for name, (dtype, shape) in wanted.items():
            nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
            if name not in held or held[name].numel() < nbytes:
                held[name] = torch.empty(nbytes, dtype=torch.uint8, pin_memory=self._pinned)
            found[name] = held[name].numpy()[:nbytes].view(dtype).reshape(shape)
        return found

    def send(self, arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        """Copies on the device, under way: the stream that is current orders what follows behind them."""
        sent = {
            name: host_tensor(array).to(self._device, non_blocking=True, copy=True) for name, array in arrays.items()
        }
        if self._device.type == "cuda":
            event = torch.cuda.Event()
            event.record()
            self._sent[self._turn] = event
        return sent


def host_tensor(array: np.ndarray) -> torch.Tensor:
    """A tensor over the array's own memory; uint32, for which torch has no arithmetic, as the same bits in int32.

    Memory that is read-only (a map) is not copied either: whoever asks promises not to write to it.
    """
    if array.dtype == np.uint32:
        array = array.view(np.int32)
    if array.flags.writeable:
        return torch.from_numpy(array)
    if array.size == 0 or not array.flags.c_contiguous:
        return torch.from_numpy(array.copy())
    # torch warns of arrays that can't be written to; memory that is given by its address carries no such flag
    buffer: Any = (ctypes.c_ubyte * array.nbytes).from_address(array.ctypes.data)
    buffer.owner = array  # as long as the tensor lives, so does the memory
    return torch.from_numpy(np.frombuffer(buffer, array.dtype).reshape(array.shape))


def unsigned(digests: torch.Tensor) -> torch.Tensor:
    """uint32 that came as int32 → int64 holding 0..2**32-1, as ``views._digest.digest`` gives for tensors."""
    return digests.to(torch.int64) & 0xFFFFFFFF


def on_side_stream(batches: Iterator[T], device: torch.device) -> Iterator[T]:
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
