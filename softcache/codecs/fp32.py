"""Logits in single precision: 4 bytes a class."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Fp32:
    """Single precision. The logits of a float32 teacher have no error, those of a float64 teacher are rounded once.

    >>> codec = Fp32()
    >>> codec.arrays((10,))
    {'values': ('<f4', (10,))}
    >>> codec.decode(codec.encode(torch.tensor([[0.5, 2049.0]])))
    tensor([[5.0000e-01, 2.0490e+03]])
    """

    def arrays(self, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name → dtype on disk and shape of one sample, for values of this shape a sample."""
        return {"values": ("<f4", shape)}

    def encode(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Values (B, …) on any device → arrays with one row for each sample."""
        return {"values": values.to(torch.float32)}

    def decode(self, arrays: dict[str, torch.Tensor]) -> torch.Tensor:
        """Arrays with one row for each sample → values (B, …) float32."""
        return arrays["values"]
