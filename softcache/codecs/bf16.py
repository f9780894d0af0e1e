"""Logits as bfloat16: 2 bytes a class, the range of float32, 8 bits of precision."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Bf16:
    """bfloat16. The logits of a teacher that answers in bfloat16, as under ``--amp bf16``, have no error; others have a
    relative one of at most 2⁻⁸. HDF5 has no such type, so the bits are kept as unsigned integers.

    >>> codec = Bf16()
    >>> codec.decode(codec.encode(torch.tensor([[1.0, 257.0, 1e30]])))  # 257 needs 9 bits
    tensor([[1.0000e+00, 2.5600e+02, 1.0003e+30]])
    """

    def arrays(self, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name → dtype on disk and shape of one sample, for values of this shape a sample."""
        return {"values": ("<u2", shape)}

    def encode(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Values (B, …) on any device → arrays with one row for each sample."""
        return {"values": values.to(torch.bfloat16).view(torch.int16)}  # torch has little arithmetic for uint16

    def decode(self, arrays: dict[str, torch.Tensor]) -> torch.Tensor:
        """Arrays with one row for each sample → values (B, …) float32."""
        return arrays["values"].view(torch.bfloat16).to(torch.float32)
