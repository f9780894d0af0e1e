"""In which precision and memory format a network computes where nobody says: the fastest that costs no accuracy."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from softcache.device import autocast, native_bf16
from softcache.models._network import Network

log = logging.getLogger(__name__)

AMP = ("auto", "off", "bf16", "fp16")
# Converting a weight to bfloat16 and a convolution's weights to another layout costs about as much as multiplying them
# with so many inputs (benchmarks/precision.py): below it nothing is gained.
WORTHWHILE = 256


@dataclass(frozen=True)
class Arithmetic:
    """``amp``: ``off``, ``bf16`` or ``fp16``, of autocast. ``channels_last``: the memory format of convolutions."""

    amp: str
    channels_last: bool

    def apply(self, network: Network) -> Network:
        """Gives the parameters the memory format, in place."""
        return network.to(memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)


def pick_arithmetic(
    network: Network,
    pixels: torch.Tensor,
    batch: int,
    device: torch.device,
    *,
    amp: str = "auto",
    channels_last: bool | None = None,
    dtype: str = "float32",
) -> Arithmetic:
    """``amp`` and ``channels_last`` as they are, and where they are ``auto`` and None the fastest that is safe.

    That is bfloat16 autocast where the device multiplies bfloat16 natively, and channels_last on a CPU and beside
    autocast; both only where a weight meets at least ``WORTHWHILE`` inputs a batch, and where the network can be run
    so: code of a user's own may ask for a layout (``view``) or a dtype. It depends on the network, the batch and the
    device alone, so that the same command computes the same bits.

    ``pixels``: uint8 (B, H, W, C), some samples to run the network on. ``batch``: samples of a step. ``dtype``: of the
    parameters; float64 isn't autocast.
    """
    asked = amp != "auto" and channels_last is not None
    worthwhile = not asked and dtype == "float32" and inputs_a_weight(network, pixels) * batch >= WORTHWHILE
    if amp == "auto":
        amp = "bf16" if worthwhile and native_bf16(device) else "off"
        if amp != "off" and not _runs(network, pixels, device, Arithmetic(amp, False)):
            amp = "off"
    if channels_last is None:
        channels_last = worthwhile and (device.type == "cpu" or (device.type == "cuda" and amp != "off"))
        channels_last = channels_last and _runs(network, pixels, device, Arithmetic(amp, True))
    return Arithmetic(amp, channels_last)


@torch.inference_mode()
def inputs_a_weight(network: Network, pixels: torch.Tensor) -> float:
    """Multiplications of a forward pass for each sample and each parameter: in a linear layer 1, in a convolution the
    positions of its output."""
    parameters = sum(p.numel() for p in network.parameters())
    was_training = network.training
    try:
        with FlopCounterMode(display=False) as counter:
            network.eval()(pixels)
    finally:
        network.train(was_training)
    return counter.get_total_flops() / 2 / len(pixels) / max(parameters, 1)


@torch.inference_mode()
def _runs(network: Network, pixels: torch.Tensor, device: torch.device, arithmetic: Arithmetic) -> bool:
    """Whether a forward pass works so, tried on a copy."""
    try:
        tried = arithmetic.apply(copy.deepcopy(network).to(device)).eval()
        with autocast(device, arithmetic.amp):
            tried(pixels.to(device))
    except (RuntimeError, TypeError, NotImplementedError) as error:
        log.debug(f"{network.spec} can't be run with {arithmetic}: {error}")
        return False
    return True
