"""The teacher as a function: pixels in, logits and activations out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch

from softcache.device import autocast
from softcache.models._hooks import Taps
from softcache.models._network import Network


class Forward:
    """Runs the teacher in inference mode, under its autocast, and catches the activations of ``layers``."""

    def __init__(
        self,
        network: Network,
        layers: Sequence[str],
        device: torch.device,
        *,
        amp: str = "off",
        compiled: bool = False,
    ):
        self.network, self.layers, self.device, self.amp = network, list(layers), device, amp
        self._run: Any = torch.compile(network) if compiled and not self.layers else network

    @torch.inference_mode()
    def __call__(self, pixels: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """(B, H, W, C) uint8 → logits (B, C) float32, and each layer's activations as they are."""
        with ExitStack() as stack:
            stack.enter_context(autocast(self.device, self.amp))
            taps = stack.enter_context(Taps(self.network.model, self.layers)) if self.layers else {}
            logits = self._run(pixels)
            hints = {layer: taps[layer] for layer in self.layers}
        return logits.float(), hints

    def wait(self) -> None:
        """Waits until the device has finished all of its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
