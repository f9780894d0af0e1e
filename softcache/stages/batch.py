"""How many rows a teacher takes at once, where nobody said: on a GPU it is found by trying."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from softcache.console import say
from softcache.models._network import Network
from softcache.stages.identity import DTYPES, DumpConfig, default_batch
from softcache.training.dumping import Forward
from softcache.training.fitting import find_batch, forward_speed
from softcache.views._viewed import ViewedDataset

LIMIT = 4096


def with_batch(
    config: DumpConfig, network: Network, viewed: ViewedDataset, device: torch.device, part: tuple[int, int]
) -> DumpConfig:
    """The configuration with a batch size: the one that was asked for or recorded, the one that is found on a GPU,
    or else the default.

    It becomes part of the cache's identity. Processes that share a dump must agree on it without asking each other,
    so that they take the default; so does a compiled network, which would be compiled for each size.
    """
    if config.batch_size is not None or device.type != "cuda" or part != (1, 1) or config.compile:
        return config
    network = network.to(device, DTYPES[config.dtype or "float32"]).eval()
    if config.channels_last:
        network.to(memory_format=torch.channels_last)
    forward = Forward(network, list(config.hints), device, amp=config.amp or "off")
    one = viewed.batch(np.arange(1), 0).to(device)
    start = default_batch(viewed, device.type)
    speed = forward_speed(lambda rows: forward(one.expand(rows, -1, -1, -1).contiguous()), forward.wait)
    found = find_batch(speed, start=start, limit=LIMIT)
    say(f"batches of {found} rows, found by trying (--batch-size sets another)")
    return dataclasses.replace(config, batch_size=found)
