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

import numpy as np
import numpy.typing as npt
import torch

from softcache.datasets._hash import MASK, UInt64, finalize, splitmix64

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
    return digest_of_sums(digest_sums(pixels))


def digest_sums(pixels: torch.Tensor) -> torch.Tensor:
    """The part of a digest that reads the bytes: (B, …) → (B,) int64.

    On a GPU this takes three kernels and ``digest`` eighteen; the rest can be computed once for many batches.
    """
    return _sums_tensor(pixels)


def digest_of_sums(sums: torch.Tensor) -> torch.Tensor:
    """The rest of a digest: ``digest_of_sums(digest_sums(pixels))`` is ``digest(pixels)``."""
    return _shifted(_finalize_tensor(sums), 32)


def digest_named(sample: Mapping[str, np.ndarray | torch.Tensor]) -> UInt32 | torch.Tensor:
    """The digest of samples that are named arrays. It covers names, dtypes, shapes and bytes, in the order of names.

    sample: name → (B, …), all arrays or all tensors. Result: as ``digest``.
    """
    first = next(iter(sample.values()))
    if isinstance(first, np.ndarray):
        words = np.zeros(len(first), np.uint64)
        for name, array in sorted(typing.cast(Mapping[str, np.ndarray], sample).items()):
            words = splitmix64(words ^ np.uint64(_header(name, str(array.dtype), array.shape[1:])))
            words = splitmix64(words ^ _sums(array))
        return (words >> np.uint64(32)).astype(np.uint32)
    state = torch.zeros(len(first), dtype=torch.int64, device=first.device)
    for name, tensor in sorted(typing.cast(Mapping[str, torch.Tensor], sample).items()):
        dtype = str(tensor.dtype).removeprefix("torch.")
        state = _splitmix_tensor(state ^ _signed(_header(name, dtype, tuple(tensor.shape[1:]))))
        state = _splitmix_tensor(state ^ _sums_tensor(tensor))
    return _shifted(state, 32)


@dataclass(frozen=True)
class InputDigest:
    """The digest of a key whose inputs are one array: ``digest`` of pixels, else ``digest_named`` of the array by its
    name. ``name``, ``dtype``, ``shape``: of one sample."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @typing.overload
    def __call__(self, values: np.ndarray) -> UInt32: ...
    @typing.overload
    def __call__(self, values: torch.Tensor) -> torch.Tensor: ...
    def __call__(self, values: np.ndarray | torch.Tensor) -> UInt32 | torch.Tensor:
        """As ``digest``."""
        if self._header is None:
            return digest(values)
        if isinstance(values, np.ndarray):
            return typing.cast(UInt32, digest_named({self.name: values}))
        if values.device.type == "cpu":
            return torch.from_numpy(self(values.detach().numpy()).astype(np.int64))
        return self.of_sums(digest_sums(values))

    def of_sums(self, sums: torch.Tensor) -> torch.Tensor:
        """The digests of values whose ``digest_sums`` these are, (B,) int64 each."""
        if self._header is None:
            return digest_of_sums(sums)
        begun = torch.full_like(sums, _signed(int(splitmix64(np.array([self._header], np.uint64))[0])))
        return _shifted(_splitmix_tensor(begun ^ sums), 32)

    @functools.cached_property
    def _header(self) -> int | None:
        pixels = self.name == "pixels" and self.dtype == "uint8"
        return None if pixels else _header(self.name, self.dtype, self.shape)


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


def _sums_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """d of each sample: (B, …) → (B,) int64, wrapping around as two's complement does."""
    flat = tensor.detach().contiguous().reshape(len(tensor), math.prod(tensor.shape[1:]))
    raw = flat.view(torch.uint8)
    if raw.shape[1] % 4:
        raw = torch.nn.functional.pad(raw, (0, -raw.shape[1] % 4))
    words = raw.contiguous().view(torch.int32)
    weights = _weights_tensor(words.shape[1], words.device)
    return (words.to(torch.int64) * weights).sum(1)  # integer matrix products don't exist on CUDA


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
