"""How many samples a second a network trains on, measured on a few steps."""

from __future__ import annotations

import time

import torch

from softcache.device import autocast
from softcache.fields import Inputs
from softcache.models._network import Network
from softcache.training.optimization import Optimization

STEPS = 5
SGD = Optimization("sgd", lr=1e-4, weight_decay=0.0)


def training_rate(network: Network, inputs: Inputs, device: torch.device, amp: str) -> float:
    """Samples per second of forward pass, backward pass and a step of SGD on ``inputs``, a batch on ``device``.

    ``amp``: of autocast. The network is changed. What else a training does (making inputs, reading targets) happens
    beside it.
    """
    network.to(device).train()
    optimizer = SGD.build([network], device)
    for step in range(STEPS + 1):
        if step == 1:  # the first one is slower
            _wait(device)
            began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, amp):
            logits = network(inputs)
        (-logits.float().log_softmax(1).mean()).backward()
        optimizer.step()
    _wait(device)
    return STEPS * len(inputs) / (time.perf_counter() - began)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
