"""In which precision and memory format a network computes where nobody says: the fastest that costs no accuracy."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from softcache.device import autocast, native_bf16
from softcache.fields import Inputs
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
    inputs: Inputs,
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

    The network is moved to the device. ``inputs``: of some samples to run it on. ``batch``: samples of
    a step. ``dtype``: of the parameters; float64 isn't autocast.
    """
    if amp != "auto" and channels_last is not None:
        return Arithmetic(amp, channels_last)
    network.to(device)
    worthwhile = dtype == "float32" and inputs_a_weight(network, inputs.to(device)) * batch >= WORTHWHILE
    bf16 = worthwhile and native_bf16(device)
    amps = [amp] if amp != "auto" else ["bf16", "off"] if bf16 else ["off"]
    candidates = []
    for precision in amps:
        last = worthwhile and (device.type == "cpu" or (device.type == "cuda" and precision != "off"))
        formats = [channels_last] if channels_last is not None else [True, False] if last else [False]
        candidates += [Arithmetic(precision, form) for form in formats]
    tried = (found for found in candidates[:-1] if _runs(network, inputs.to(device), device, found))
    return next(tried, candidates[-1])


@torch.inference_mode()
def inputs_a_weight(network: Network, inputs: Inputs) -> float:
    """Multiplications of a forward pass for each sample and each parameter: in a linear layer 1, in a convolution the
    positions of its output."""
    from torch.utils.flop_counter import FlopCounterMode  # which imports triton, and few commands need it

    parameters = sum(p.numel() for p in network.parameters())
    was_training = network.training
    try:
        with FlopCounterMode(display=False) as counter:
            network.eval().outputs(inputs, [])
    finally:
        network.train(was_training)
    return counter.get_total_flops() / 2 / len(inputs) / max(parameters, 1)


@torch.inference_mode()
def _runs(network: Network, inputs: Inputs, device: torch.device, arithmetic: Arithmetic) -> bool:
    """Whether a forward pass works so. The network is in the usual format and in its own mode again after that."""
    was_training = network.training
    try:
        with autocast(device, arithmetic.amp):
            arithmetic.apply(network).eval().outputs(inputs, [])
    except (RuntimeError, TypeError) as error:  # an operation without a kernel for it is a RuntimeError too
        log.debug(f"{network.spec} can't be run with {arithmetic}: {error}")
        return False
    finally:
        Arithmetic("off", False).apply(network).train(was_training)
    return True
