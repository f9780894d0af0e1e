"""The teacher as a function: inputs in, what is kept of its answer out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch

from softcache.cache.schema import hint_column, is_hint, layer_of
from softcache.device import autocast
from softcache.fields import Inputs
from softcache.models._hooks import Taps
from softcache.models._network import Network


class Forward:
    """Runs the teacher in inference mode, under its autocast, and catches the activations of layers.

    ``columns``: names of what is asked for, outputs and hints.
    """

    def __init__(
        self,
        network: Network,
        columns: Sequence[str],
        device: torch.device,
        *,
        amp: str = "off",
        compiled: bool = False,
    ):
        self.network, self.device, self.amp = network, device, amp
        self._compiled = compiled
        self.ask(columns)

    def ask(self, columns: Sequence[str]) -> None:
        """Asks for other columns from now on."""
        self.columns = list(columns)
        self._layers = [layer_of(name) for name in columns if is_hint(name)]
        self._outputs = [name for name in columns if not is_hint(name)]
        run: Any = self._several
        self._run = torch.compile(run) if self._compiled and not self._layers else run

    @torch.inference_mode()
    def __call__(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        """Inputs of B keys → by column, outputs (B, …) float32, and activations as they are."""
        with ExitStack() as stack:
            stack.enter_context(autocast(self.device, self.amp))
            taps = stack.enter_context(Taps(self.network.model, self._layers)) if self._layers else {}
            made = self._run(inputs)
            hints = {hint_column(layer): taps[layer] for layer in self._layers}
        return {name: values.float() for name, values in made.items()} | hints

    def _several(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        return self.network.outputs(inputs, self._outputs)

    def wait(self) -> None:
        """Waits until the device has finished all of its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
