"""From vectors to their packed bytes and back, with the constants that ``basis`` was fitted to."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from softcache.codecs._basis_layout import Layout
from softcache.codecs._basis_quantizer import Quantizer
from softcache.codecs._basis_refine import refined


@dataclass
class Coding:
    """``layout``: of the bytes; ``constants``: mean, directions, widths and levels."""

    layout: Layout
    constants: dict[str, torch.Tensor]
    _placed: dict[torch.device, Quantizer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        widths = self.constants["widths"]
        self._packing = self.layout.packing(widths[widths > 0].tolist())

    def encode(self, vectors: torch.Tensor) -> torch.Tensor:
        """(B, N) float32 on any device → (B, bytes) uint8."""
        quantizer = self._on(vectors.device)
        with torch.autocast(vectors.device.type, enabled=False):
            leaders, places = vectors.topk(self.layout.top, dim=1)
            leaders = leaders.half()
            numbers = quantizer.nearest(quantizer.coefficients(vectors))
            if self.layout.top:
                numbers = refined(quantizer, numbers, vectors, places, leaders.float())
        fields = [leaders.view(torch.int16).int() & 0xFFFF, self.layout.split(places), numbers]
        packed = self._packing.pack(torch.cat([part.int() for part in fields], 1))
        return torch.nn.functional.pad(packed, (0, self.layout.bytes - packed.shape[1]))

    def decode(self, packed: torch.Tensor) -> torch.Tensor:
        """(B, bytes) uint8 → (B, N) float32."""
        top, of_places = self.layout.top, self.layout.top * len(self.layout.place_widths)
        fields = self._packing.unpack(packed[:, : self._packing.bytes])
        leaders, places, numbers = fields.split([top, of_places, fields.shape[1] - top - of_places], 1)
        quantizer = self._on(packed.device)
        with torch.autocast(packed.device.type, enabled=False):
            vectors = quantizer.vectors(quantizer.rounded(numbers))
        values = leaders.to(torch.int16).view(torch.float16).float()
        if top:  # none of the others is larger, and none comes before it because it is as large
            smallest = values.amin(1, keepdim=True)
            vectors = torch.minimum(vectors, torch.nextafter(smallest, smallest - torch.inf))
        return vectors.scatter(1, self.layout.joined(places), values)

    def _on(self, device: torch.device) -> Quantizer:
        if device not in self._placed:
            self._placed[device] = Quantizer.of(self.constants, device)
        return self._placed[device]
