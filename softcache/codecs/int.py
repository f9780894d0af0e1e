"""Values as whole numbers of 4 to 8 bits, evenly spaced in the range of each row."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch

from softcache.codecs._bits import Bits
from softcache.errors import UsageError

FINE = 16  # the largest value is kept as so many parts of a step
MOST = 2**15 - 1  # of these parts, which are int16
ERROR = 0.54  # of a step, at most: half of one, half of a sixteenth, and what float32 rounds
OWN_RANGE = 64  # numbers of a vector or map that have a range of their own: its 4 bytes are 1/16 of theirs in 8 bits
_LEAST = 2.0**-133  # the smallest step: of bfloat16's numbers the smallest above 0


@dataclass(frozen=True)
class Int:
    """``bits`` for each number, and 4 bytes for the range of each row. Levels are evenly spaced, down from the row's
    largest value to its smallest one. Nothing is fitted: rows of any size are kept equally well.

    Numbers that share a range: a vector of logits, or of an embedding; of each position or channel its own vector or
    map (the last axis, of three axes the last two), if it has 64 numbers or more; else all numbers of a row, or of a
    place where rows have lengths of their own.

    With n = 2**bits - 1, the error is at most 0.54 steps, and a step is at most
    (1 + 2⁻⁷) · max((largest - smallest) / n, |largest| / 2047), but at least 2⁻¹³³. So where values are far from 0
    and close to each other, the error is at most 2⁻¹¹ of them, as in half precision, which has no such numbers beyond
    ±65504. Decoding rounds nothing, so that it gives the same numbers on every device.

    >>> codec = Int(bits=4).shaped((3,))
    >>> codec.decode(codec.encode(torch.tensor([[0.0, 1.0, 15.0], [-1e30, 0.0, 2e30]])))[0]
    tensor([ 0.,  1., 15.])
    """

    bits: int = 8

    def __post_init__(self) -> None:
        if not 4 <= self.bits <= 8:
            raise UsageError(f"codec 'int': bits={self.bits}: numbers have 4 to 8 bits; fp16 and bf16 have 16")

    def arrays(self, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name → dtype on disk and shape of one sample, for values of this shape a sample."""
        ranges = _ranges(shape)
        size = -(-math.prod(shape) * self.bits // 8)
        return {"values": ("|u1", (size,)), "step": ("<u2", ranges), "top": ("<i2", ranges)}

    def shaped(self, shape: tuple[int, ...]) -> _Shaped:
        """The codec for values of this shape a sample."""
        return _Shaped(self.bits, shape)


@dataclass(frozen=True)
class _Shaped:
    bits: int
    shape: tuple[int, ...]

    def encode(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Values (B, …) on any device → arrays with one row for each sample. What isn't finite is refused before it is
        kept."""
        own, ranges = values.float().reshape(len(values), *self._grouped), _ranges(self.shape)
        largest, n = own.amax(-1, keepdim=True), 2**self.bits - 1
        # divided before they are subtracted: the difference alone may be more than float32 can hold
        wanted = largest / n - own.amin(-1, keepdim=True) / n
        step = _rounded_up(torch.maximum(wanted, largest.abs() * (FINE / MOST)).nan_to_num(0))
        top = (largest / step * FINE).round().clamp(-MOST, MOST).nan_to_num(0)
        levels = (top / FINE - own / step).round().clamp(0, n).nan_to_num(0)
        flat = levels.reshape(len(values), math.prod(self.shape))
        return {
            "values": flat.to(torch.uint8) if self.bits == 8 else self._packing.pack(flat),
            "step": step.to(torch.bfloat16).view(torch.int16).reshape(len(values), *ranges),
            "top": top.to(torch.int16).reshape(len(values), *ranges),
        }

    def decode(self, arrays: dict[str, torch.Tensor]) -> torch.Tensor:
        """Arrays with one row for each sample → values (B, …) float32."""
        packed = arrays["values"]
        levels = packed.to(torch.int32) if self.bits == 8 else self._packing.unpack(packed)
        levels = levels.reshape(len(packed), *self._grouped)
        step = arrays["step"].view(torch.bfloat16).to(torch.float32).unsqueeze(-1) / FINE
        parts = arrays["top"].to(torch.int32).unsqueeze(-1) - FINE * levels
        # Both factors together have no more digits than float32: what comes out is exact, unless it overflows.
        largest = torch.finfo(torch.float32).max
        return (parts.to(torch.float32) * step).clamp(-largest, largest).reshape(len(packed), *self.shape)

    def bound(self, values: torch.Tensor) -> torch.Tensor:
        """(B, …): what each of values (B, …) may lose, however the levels of its range come to lie."""
        own = values.float().reshape(len(values), *self._grouped)
        largest, n = own.amax(-1, keepdim=True), 2**self.bits - 1
        step = torch.maximum(largest / n - own.amin(-1, keepdim=True) / n, largest.abs() * (FINE / MOST))
        most = (step * (1 + 2**-7)).clamp_min(_LEAST) * ERROR
        return most.expand_as(own).reshape(values.shape)

    @property
    def _grouped(self) -> tuple[int, ...]:
        """Of one sample: the ranges, and the numbers that share one."""
        ranges = _ranges(self.shape)
        return (*ranges, math.prod(self.shape) // math.prod(ranges))

    @functools.cached_property
    def _packing(self) -> Bits:
        return Bits([self.bits] * math.prod(self.shape))


def _ranges(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of a sample whose places have ranges of their own."""
    own = shape[:1] if len(shape) == 3 else shape[:-1]
    return own if math.prod(shape) >= OWN_RANGE * math.prod(own) else ()


def _rounded_up(steps: torch.Tensor) -> torch.Tensor:
    """The next float32 that is at least as large and has the 8 binary digits of a bfloat16, above 0."""
    bits = steps.clamp_min(_LEAST).view(torch.int32)
    return ((bits + 0xFFFF) & ~0xFFFF).view(torch.float32)
