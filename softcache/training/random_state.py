"""Random numbers that go on where they were, whoever else draws some in between."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


class RandomState:
    """The state of torch's generators of the CPU and of ``device``, apart from what anybody else does with them."""

    def __init__(self, device: torch.device):
        self._device = device
        self._kept: tuple[torch.Tensor, torch.Tensor | None] | None = None

    @contextlib.contextmanager
    def own(self) -> Iterator[None]:
        """Within it the generators go on where they were at the end of the last time."""
        if self._kept is not None:
            cpu, device = self._kept
            torch.set_rng_state(cpu)
            if device is not None:
                torch.cuda.set_rng_state(device, self._device)
        try:
            yield
        finally:
            on_gpu = self._device.type == "cuda"
            self._kept = torch.get_rng_state(), torch.cuda.get_rng_state(self._device) if on_gpu else None
