"""A 32-bit digest of a sample's bytes that is the same in NumPy and on any torch device.

The bytes are little-endian signed 32-bit words x_j, padded with zeros; d = Σ_j w_j·x_j mod 2**64 with odd weights
w_j = splitmix64(j) | 1; the digest is the upper half of SplitMix64's finalizer of d. On a GPU that is a dot product,
so every key of every batch can be checked without a copy to the host.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from softcache.datasets._hash import MASK, UInt64, finalize, splitmix64
from softcache.fields import Fields, Inputs
from softcache.inputs import PIXELS, InputField

UInt32 = npt.NDArray[np.uint32]


@typing.overload
def digest(pixels: np.ndarray) -> UInt32: ...
@typing.overload
def digest(pixels: torch.Tensor) -> torch.Tensor: ...
def digest(pixels: np.ndarray | torch.Tensor) -> UInt32 | torch.Tensor:
    """The digest of each sample.

    pixels: (B, …) of any fixed-size dtype. Result: (B,) uint32 for an array; for a tensor (B,) int64 with values in
    0..2**32-1, on the same device and without waiting for it.

    >>> images = np.arange(2 * 8 * 8, dtype=np.uint8).reshape(2, 8, 8, 1)
    >>> digest(images).tolist() == digest(torch.from_numpy(images)).tolist()
    True
    """
    if isinstance(pixels, np.ndarray):
        return (finalize(_sums(pixels)) >> np.uint64(32)).astype(np.uint32)
    if pixels.device.type == "cpu":
        return torch.from_numpy(digest(pixels.detach().numpy()).astype(np.int64))
    return _shifted(_finalize_tensor(_sums_tensor(pixels)), 32)


@dataclass(frozen=True)
class PixelsDigest:
    """``digest``, in two parts: what reads the bytes, and the rest, which can be put off."""

    name: ClassVar[str] = PIXELS

    def __call__(self, pixels: Inputs) -> torch.Tensor:
        """(B, H, W, C) uint8 → (B,) int64."""
        return self.of_sums(self.sums(pixels)) if pixels.device.type != "cpu" else digest(_pixels(pixels))

    def sums(self, pixels: Inputs) -> torch.Tensor:
        """The part of a digest that reads the bytes: (B,) int64.

        On a GPU this takes three kernels and ``digest`` eighteen; the rest can be computed once for many batches.
        """
        return _sums_tensor(_pixels(pixels))

    def of_sums(self, sums: torch.Tensor) -> torch.Tensor:
        """The digests of the pixels whose ``sums`` these are."""
        return _shifted(_finalize_tensor(sums), 32)


class FieldsDigest:
    """The digest of keys whose inputs are named tensors. It covers names, dtypes, shapes and bytes, in the order of
    names, each row at its own length: what a row is filled up with never counts.

    ``inputs``: dtype and shape of each in one sample, null for a row's own length.
    """

    def __init__(self, inputs: Mapping[str, InputField]):
        self.name = ", ".join(inputs)
        self._inputs = dict(sorted(inputs.items()))
        self._tables: dict[str, torch.Tensor] = {}

    def __call__(self, inputs: Inputs) -> torch.Tensor:
        """Result: (B,) int64 with values in 0..2**32-1, on the same device and without waiting for it."""
        return self.of_sums(self.sums(inputs))

    def sums(self, inputs: Inputs) -> torch.Tensor:
        """The part of a digest that reads the bytes, and with it most of the rest: (B,) int64."""
        assert isinstance(inputs, Fields)
        state = torch.zeros(len(inputs), dtype=torch.int64, device=inputs.device)
        for name, field in self._inputs.items():
            tensor = inputs.tensors[name]
            if field.ragged:
                if field.pad:
                    own = inputs.mask(name).reshape(*tensor.shape[:2], *[1] * (tensor.ndim - 2))
                    tensor = tensor.masked_fill(~own, 0)  # zeros at the end change no sum
                header = self._headers(name, inputs.lengths[name], tensor.shape[1])
            else:
                header = torch.tensor(_signed(_header(name, field.dtype, field.tail)), device=tensor.device)
            state = _splitmix_tensor(state ^ header)
            state = _splitmix_tensor(state ^ _sums_on(tensor))
        return state

    def of_sums(self, sums: torch.Tensor) -> torch.Tensor:
        """The digests of inputs whose ``sums`` these are."""
        return _shifted(sums, 32)

    def _headers(self, name: str, lengths: torch.Tensor, longest: int) -> torch.Tensor:
        """(B,) int64: what names, dtypes and shapes of rows of these lengths come to.

        On a GPU they are looked up in a table of all lengths so far, so that nothing waits for it.
        """
        field = self._inputs[name]
        if lengths.device.type == "cpu":
            found = [_signed(_header(name, field.dtype, (length, *field.tail))) for length in lengths.tolist()]
            return torch.tensor(found, dtype=torch.int64)
        held = self._tables.get(name)
        if held is None or len(held) <= longest:
            shapes = [(length, *field.tail) for length in range(max(2 * longest, 64) + 1)]
            table = [_signed(_header(name, field.dtype, shape)) for shape in shapes]
            held = self._tables[name] = torch.tensor(table, dtype=torch.int64).to(lengths.device)
        return held[lengths]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tables": {}}


def _pixels(inputs: Inputs) -> torch.Tensor:
    assert isinstance(inputs, torch.Tensor)
    return inputs


@functools.lru_cache(maxsize=8)
def _weights(count: int) -> npt.NDArray[np.int64]:
    return (splitmix64(np.arange(count, dtype=np.uint64)) | np.uint64(1)).view(np.int64)


@functools.lru_cache(maxsize=8)
def _weights_tensor(count: int, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(_weights(count)).to(device)


def _sums(array: np.ndarray) -> UInt64:
    """d of each sample: (B, …) → (B,) uint64."""
    count = len(array)
    flat = np.ascontiguousarray(array).reshape(count, math.prod(array.shape[1:]))
    raw = flat.view(np.uint8) if flat.size else np.zeros((count, 0), np.uint8)
    if raw.shape[1] % 4:
        raw = np.pad(raw, ((0, 0), (0, -raw.shape[1] % 4)))
    words = raw.view("<i4")  # (B, n)
    # einsum converts to int64 in small buffers, which is twice as fast as converting whole arrays
    sums = np.einsum("bn,n->b", words, _weights(words.shape[1]), dtype=np.int64, casting="safe")
    return sums.view(np.uint64)


def _sums_on(tensor: torch.Tensor) -> torch.Tensor:
    """d of each sample on the tensor's own device; on the CPU NumPy is faster."""
    if tensor.device.type == "cpu":
        return torch.from_numpy(_sums(tensor.detach().numpy()).view(np.int64))
    return _sums_tensor(tensor)


def _sums_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """d of each sample: (B, …) → (B,) int64, wrapping around as two's complement does."""
    flat = tensor.detach().contiguous().reshape(len(tensor), math.prod(tensor.shape[1:]))
    raw = flat.view(torch.uint8)
    if raw.shape[1] % 4:
        raw = torch.nn.functional.pad(raw, (0, -raw.shape[1] % 4))
    words = raw.contiguous().view(torch.int32)
    weights = _weights_tensor(words.shape[1], words.device)
    return (words.to(torch.int64) * weights).sum(1)  # integer matrix products don't exist on CUDA


@functools.lru_cache(maxsize=1 << 16)
def _header(name: str, dtype: str, shape: tuple[int, ...]) -> int:
    text = json.dumps([name, dtype, list(shape)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def _signed(word: int) -> int:
    word &= MASK
    return word - (1 << 64) if word >> 63 else word


def _shifted(x: torch.Tensor, bits: int) -> torch.Tensor:
    """A logical shift to the right; torch's shift of int64 copies the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _finalize_tensor(x: torch.Tensor) -> torch.Tensor:
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def _splitmix_tensor(x: torch.Tensor) -> torch.Tensor:
    return _finalize_tensor(x + _signed(0x9E3779B97F4A7C15))
