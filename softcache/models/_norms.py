"""Batch norms whose running statistics follow so slowly that a short training leaves them where they began."""

from __future__ import annotations

import logging
import math

from torch.nn.modules.batchnorm import _BatchNorm

from softcache.models._network import Network

log = logging.getLogger(__name__)
USUAL = 0.1  # torch's own momentum, with which a few dozen batches are enough
LEFT = 0.01  # the share of a statistic's first value from which on it is warned of


def warn_of_slow_norms(network: Network, rows: int, batch_size: int, epochs: int) -> None:
    """Warns where running statistics keep more than a hundredth of the values that they began with.

    After n batches of a momentum m that share is ``(1 - m)^n``. The first variance is 1, often a thousand times what it
    has to become, so that a network may reach nothing in a test although its training loss falls. torchvision's
    MobileNetV3 has 0.01, its MNASNet 0.0003.
    """
    batches = epochs * math.ceil(rows / batch_size)
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    slowest = min((module.momentum for module in norms if module.momentum is not None), default=USUAL)
    left = (1 - slowest) ** batches
    if slowest < USUAL and left > LEFT:
        log.warning(
            f"batch norms of {network.spec} have momentum {slowest:g}: after these {batches:,} batches "
            f"{100 * left:.2g} % of the statistics that they began with are left, and a test may find much less than "
            "was learnt. Train for more batches, or give the network another momentum in a file of your own "
            "(FILE.py:FACTORY)"
        )
