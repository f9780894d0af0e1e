"""Logits as IEEE half floats: 2 bytes a class, 11 bits of precision, up to ±65504."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Fp16:
    """Half precision. The relative error is at most 2⁻¹¹; logits beyond ±65504 overflow and are refused.

    >>> codec = Fp16()
    >>> stored = codec.encode(torch.tensor([[1.0, 2049.0, 1e5]]))
    >>> codec.decode(stored)  # 2049 needs 12 bits
    tensor([[1.0000e+00, 2.0480e+03,        inf]])
    """

    def arrays(self, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name → dtype on disk and shape of one sample, for values of this shape a sample."""
        return {"values": ("<f2", shape)}

    def encode(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Values (B, …) on any device → arrays with one row for each sample. Values that overflow become infinite."""
        return {"values": values.to(torch.float16)}

    def decode(self, arrays: dict[str, torch.Tensor]) -> torch.Tensor:
        """Arrays with one row for each sample → values (B, …) float32."""
        return arrays["values"].to(torch.float32)
