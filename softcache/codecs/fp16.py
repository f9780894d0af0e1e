"""Logits as IEEE half floats: 2 bytes a class, 11 bits of precision, up to ±65504."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Fp16:
    """Half precision. Relative error at most 2⁻¹¹; logits beyond ±65504 overflow and are refused."""

    def arrays(self, classes: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name → dtype on disk and shape of one sample."""
        return {"values": ("<f2", (classes,))}

    def encode(self, logits_bc: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, C) floats on any device → arrays of one row a sample. Overflow shows as infinities."""
        return {"values": logits_bc.to(torch.float16)}

    def decode(self, arrays: dict[str, torch.Tensor]) -> torch.Tensor:
        """(B, C) float32."""
        return arrays["values"].to(torch.float32)
