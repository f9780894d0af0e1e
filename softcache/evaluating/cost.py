"""What a network costs: parameters, floating-point operations, and how long it takes to answer."""

from __future__ import annotations

import statistics
import time
import warnings
from dataclasses import dataclass

import torch

from softcache.device import autocast
from softcache.fields import Inputs
from softcache.models._array_model import ArrayModel
from softcache.models._network import Network

SECONDS = 0.5  # that timing one batch size takes at most, once REPETITIONS are done
REPETITIONS = 10  # that are timed at least
MOST = 200
WARMUP = 3  # runs before the first that is timed


@dataclass(frozen=True)
class Latency:
    """Seconds of a forward pass from inputs on the device to logits: the ``median`` over ``repetitions``, and the
    quartiles ``low`` and ``high``, which half of the repetitions lie between. ``batch``: samples of it."""

    batch: int
    median: float
    low: float
    high: float
    repetitions: int


def parameters(network: Network) -> int | None:
    """How many numbers the network's parameters have, each tensor once, however often it is used; None of a function
    that is no network."""
    if isinstance(network.model, ArrayModel):
        return None
    return sum(parameter.numel() for parameter in network.model.parameters())


@torch.inference_mode()
def flops(network: Network, inputs: Inputs) -> int | None:
    """Floating-point operations of a forward pass of ``inputs``, in evaluation mode: a multiplication and an addition
    are two. Matrix products, convolutions and attention count, as ``torch.utils.flop_counter`` counts them; sums,
    activations and normalizations don't. None of a function that is no network.

    ``inputs``: on the network's device.
    """
    if isinstance(network.model, ArrayModel):
        return None
    from torch.utils.flop_counter import FlopCounterMode  # which imports triton, where there is one

    was_training = network.training
    try:
        # Fused recurrent kernels are one operation that the counter doesn't know; without them they are products.
        with warnings.catch_warnings():
            # Said of a switch that stays as it is.
            warnings.filterwarnings("ignore", "TF32 acceleration", UserWarning)
            now = torch.backends.cudnn
            as_it_is = {"deterministic": now.deterministic, "allow_tf32": now.allow_tf32}
            fused = torch.backends.mkldnn.flags(enabled=False), now.flags(enabled=False, **as_it_is)
            with fused[0], fused[1], FlopCounterMode(display=False) as counter:
                network.eval().outputs(inputs, [])
    finally:
        network.train(was_training)
    return int(counter.get_total_flops())


@torch.inference_mode()
def latency(network: Network, inputs: Inputs, device: torch.device, amp: str = "off") -> Latency:
    """How long a forward pass of ``inputs`` takes, which lie on ``device`` as the network does, in evaluation mode and
    under autocast ``amp``. Each repetition waits until the device has finished."""
    was_training = network.training
    network.eval()

    def run() -> float:
        began = time.perf_counter()
        with autocast(device, amp):
            network.outputs(inputs, ["logits"])
        _wait(device)
        return time.perf_counter() - began

    try:
        _wait(device)
        for _ in range(WARMUP):
            run()
        times: list[float] = []
        until = time.perf_counter() + SECONDS
        while len(times) < REPETITIONS or (len(times) < MOST and time.perf_counter() < until):
            times.append(run())
    finally:
        network.train(was_training)
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return Latency(len(inputs), median, low, high, len(times))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
