"""What lies where in the bytes of a vector that ``basis`` keeps. It follows from options and the vector's length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from softcache.codecs._bits import MOST, Bits

HALF = 16  # bits of a leader's value
WIDEST = 8  # bits of a coefficient


@dataclass(frozen=True)
class Layout:
    """``numbers``: of a vector. ``top``: so many leaders, the largest of them, are kept as half floats. ``bits``: of
    all coefficients together. ``rank``: directions at most."""

    numbers: int
    top: int
    bits: int
    rank: int

    @property
    def index_bits(self) -> int:
        """Of the place of a leader in its vector."""
        return (self.numbers - 1).bit_length()

    @property
    def leader_bits(self) -> int:
        """Of all leaders together."""
        return self.top * (HALF + self.index_bits)

    @property
    def bytes(self) -> int:
        """Of a vector."""
        return max(1, -(-(self.leader_bits + self.bits) // 8))

    def packing(self, widths: Sequence[int]) -> Bits:
        """The leaders' values, then their places, then the coefficients, which have ``widths`` bits. A place of more
        than 16 bits is two numbers, the lower bits first."""
        return Bits([HALF] * self.top + list(self.place_widths) * self.top + list(widths))

    @property
    def place_widths(self) -> tuple[int, ...]:
        """Bits of the one or two numbers that a leader's place is kept as."""
        bits = self.index_bits
        return (bits,) if bits <= MOST else (MOST, bits - MOST)

    def split(self, places: torch.Tensor) -> torch.Tensor:
        """Places (B, top) → the numbers that they are kept as, (B, top or 2 · top)."""
        parts = [places >> begin & (1 << MOST) - 1 for begin in range(0, max(1, self.index_bits), MOST)]
        return torch.stack(parts, 2).flatten(1)

    def joined(self, numbers: torch.Tensor) -> torch.Tensor:
        """The other way, int64. A place that can't be, in damaged bytes, becomes the last one."""
        parts = numbers.long().unflatten(1, (self.top, len(self.place_widths)))
        places = sum(parts[:, :, k] << MOST * k for k in range(parts.shape[2]))
        return torch.as_tensor(places).clamp_max(self.numbers - 1)


def layout_of(numbers: int, leaders: int, size: int, rank: int | None = None) -> Layout:
    """For vectors of ``numbers``, with ``leaders`` of them, in ``size`` bytes; less where all coefficients have 8 bits.

    >>> layout_of(1000, 5, 225)
    Layout(numbers=1000, top=5, bits=1670, rank=835)
    """
    top = min(leaders, numbers)
    bits = 8 * size - Layout(numbers, top, 0, 0).leader_bits
    most = numbers if rank is None else min(rank, numbers)
    bits = max(0, min(bits, WIDEST * most))
    return Layout(numbers, top, bits, max(1, min(most, bits // 2)))
