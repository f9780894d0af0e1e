"""Copies from the host's memory to a GPU, made so that neither of the two waits for the other.

A GPU copies from pinned memory while it computes and while the host goes on. ``PinnedBuffers`` are pinned memory that
batches are gathered into; a ``SideStream`` is the CUDA stream on which those copies, and whatever else a batch is made
of, run beside the training's own kernels. On a CPU nothing is copied, and both leave batches as they are.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
import torch

T = TypeVar("T")


class PinnedBuffers:
    """Two sets of reusable buffers in pinned memory, which are filled and copied to the device in turn.

    Gathering into memory that stays pinned saves one copy a batch. There are two sets so that one can be filled while
    the other is still being copied. The tensors that ``send`` returns lie on the device and are the caller's own.
    """

    def __init__(self, device: torch.device, *, pinned: bool = True):
        self._device, self._pinned = device, pinned
        self._sets: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]] = ({}, {})
        self._copied: list[Any] = [None, None]  # for each set the event that follows its last copy
        self._turn = 0

    def arrays(self, wanted: dict[str, tuple[str, tuple[int, ...]]]) -> dict[str, np.ndarray]:
        """Buffers of these dtypes and shapes (rows first), to be filled and then sent.

        Waits until the previous copy from these buffers has finished.
        """
        self._turn ^= 1
        if self._copied[self._turn] is not None:
            self._copied[self._turn].synchronize()
        held, found = self._sets[self._turn], {}
        for name, (dtype, shape) in wanted.items():
            nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
            if name not in held or held[name].numel() < nbytes:
                held[name] = torch.empty(nbytes, dtype=torch.uint8, pin_memory=self._pinned)
            found[name] = held[name].numpy()[:nbytes].view(dtype).reshape(shape)
        return found

    def send(self, arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        """Copies on the device. They are made on the current stream, which also orders whatever uses them there."""
        sent = {
            name: host_tensor(array).to(self._device, non_blocking=True, copy=True) for name, array in arrays.items()
        }
        if self._device.type == "cuda":
            event = torch.cuda.Event()
            event.record()
            self._copied[self._turn] = event
        return sent


class SideStream:
    """A second CUDA stream, on which batches are made while the current stream trains on the one before.

    The host runs ahead of a GPU: when it asks for the next batch, the GPU is still busy with the previous one. Work
    that makes the next batch is queued beside that work and not behind it. A training has one side stream a device,
    for all its epochs, so that the memory that torch keeps for each stream is reused.

    ``cuda`` is where streams come from: ``torch.cuda``, or in tests a fake of it.
    """

    def __init__(self, device: torch.device, *, cuda: Any = torch.cuda):
        self._device, self._cuda = device, cuda
        self._side = cuda.Stream(device) if device.type == "cuda" else None

    def batches(self, made: Iterator[T]) -> Iterator[T]:
        """The same batches; on a GPU each is made on the side stream and then handed to the current one."""
        if self._side is None:
            yield from made
            return
        # Batches are made from tensors that the current stream has put on the device.
        self._side.wait_stream(self._cuda.current_stream(self._device))
        while True:
            with self._cuda.stream(self._side):
                batch = next(made, None)
            if batch is None:
                return
            current = self._cuda.current_stream(self._device)
            current.wait_stream(self._side)
            for tensor in _tensors(vars(batch)):
                if tensor.device.type == "cuda":
                    # Otherwise torch would give this memory to the next batch while the current stream still reads it.
                    tensor.record_stream(current)
            yield batch


def host_tensor(array: np.ndarray) -> torch.Tensor:
    """A tensor that shares the array's memory. torch has little arithmetic for uint16 and uint32, whose bits become
    int16 and int32.

    Read-only memory (a memory map) is shared too: the caller must not write to the tensor.
    """
    if array.dtype in (np.uint16, np.uint32):
        array = array.view(np.dtype(f"i{array.itemsize}"))
    if array.flags.writeable:
        return torch.from_numpy(array)
    if array.size == 0 or not array.flags.c_contiguous:
        return torch.from_numpy(array.copy())
    # torch warns of arrays that aren't writable. Memory that is given by its address carries no such flag.
    buffer: Any = (ctypes.c_ubyte * array.nbytes).from_address(array.ctypes.data)
    buffer.owner = array  # keeps the memory as long as the tensor lives
    return torch.from_numpy(np.frombuffer(buffer, array.dtype).reshape(array.shape))


def unsigned(digests: torch.Tensor) -> torch.Tensor:
    """Digests that ``host_tensor`` made int32 of → int64 in 0..2**32-1, as ``views._digest.digest`` gives them."""
    return digests.to(torch.int64) & 0xFFFFFFFF


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """All tensors in nested dictionaries, lists and objects."""
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
