"""Logits as they are: 4 bytes a class."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Fp32:
    """Single precision: no error for a float32 teacher; a float64 teacher's logits are rounded once."""

    def arrays(self, classes: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name → dtype on disk and shape of one sample."""
        return {"values": ("<f4", (classes,))}

    def encode(self, logits_bc: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, C) floats on any device → arrays of one row a sample."""
        return {"values": logits_bc.to(torch.float32)}

    def decode(self, arrays: dict[str, torch.Tensor]) -> torch.Tensor:
        """(B, C) float32."""
        return arrays["values"]
