"""Whole numbers of few bits each, packed end to end into bytes, on any device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

MOST = 16  # bits of a number: with up to 7 bits before it in its first byte it lies in three bytes


@dataclass
class Bits:
    """Numbers of ``widths`` bits, from 0 to 16 each, of which the first begins in the lowest bit of the first byte, and
    each next one where the one before ends. A number of 0 bits is 0.

    >>> bits = Bits([3, 5, 4])
    >>> bits.bytes, bits.pack(torch.tensor([[5, 17, 9]])).tolist()
    (2, [[141, 9]])
    >>> bits.unpack(torch.tensor([[141, 9]], dtype=torch.uint8)).tolist()
    [[5, 17, 9]]
    """

    widths: Sequence[int]
    _placed: dict[torch.device, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not all(0 <= width <= MOST for width in self.widths):
            raise ValueError(f"numbers have 0 to {MOST} bits")

    @property
    def bytes(self) -> int:
        """Of one row."""
        return -(-sum(self.widths) // 8)

    def pack(self, values: torch.Tensor) -> torch.Tensor:
        """Whole numbers (B, N), each from 0 to 2**width - 1 → (B, bytes) uint8."""
        first, shift, mask = self._on(values.device)
        placed = (values.to(torch.int32) & mask) << shift
        packed = values.new_zeros((len(values), self.bytes + 3), dtype=torch.int32)
        for byte in range(3):  # their bits don't overlap, so that a sum joins them
            packed.index_add_(1, first + byte, (placed >> (8 * byte)) & 255)
        return packed[:, : self.bytes].to(torch.uint8)

    def unpack(self, packed: torch.Tensor) -> torch.Tensor:
        """(B, bytes) uint8 → whole numbers (B, N) int32."""
        first, shift, mask = self._on(packed.device)
        wide = torch.nn.functional.pad(packed, (0, 3)).to(torch.int32)  # a number of 0 bits may begin behind the end
        words = wide[:, :-2] | wide[:, 1:-1] << 8 | wide[:, 2:] << 16
        return words.index_select(1, first) >> shift & mask

    def _on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of each number its first byte, its first bit in it, and its mask."""
        if device not in self._placed:
            widths = torch.tensor(list(self.widths), dtype=torch.int64)
            begins = widths.cumsum(0) - widths
            mask = (1 << widths) - 1
            self._placed[device] = (
                (begins // 8).to(device),
                (begins % 8).to(device, torch.int32),
                mask.to(device, torch.int32),
            )
        return self._placed[device]
