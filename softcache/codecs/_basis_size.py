"""The smallest size in which ``basis`` keeps logits as well as is asked for."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from softcache.codecs._basis_coding import Coding
from softcache.codecs._basis_fit import MOST_VECTORS, spectrum_of
from softcache.codecs._basis_layout import Layout

_FINER = 1.03  # from one size that is tried to the next
_JUDGED = 1024  # vectors, at most


def smallest(logits: torch.Tensor, max_kl: float, layout: Callable[[int], Layout], least: int, most: int) -> int | None:
    """The smallest number of bytes from ``least`` to ``most`` whose mean divergence is at most ``max_kl``, at T = 1 and
    on every fourth vector, after a fit on the others; None where not even ``most`` is enough.

    ``logits``: (K, C). ``layout``: of so many bytes.
    """
    logits = logits[:: -(-len(logits) // MOST_VECTORS)].float()
    held_out = torch.arange(len(logits)) % 4 == 3
    fitted_on, judged = (logits[~held_out], logits[held_out][:_JUDGED]) if len(logits) > 3 else (logits, logits)
    spectrum = spectrum_of(fitted_on, layout(most).rank)

    def holds(size: int) -> bool:
        coding = Coding(layout(size), spectrum.constants(layout(size)))
        kept = coding.decode(coding.encode(judged))
        p, q = F.log_softmax(judged.double(), 1), F.log_softmax(kept.double(), 1)
        return float((p.exp() * (p - q)).sum(1).mean()) <= max_kl

    sizes = [most]
    while sizes[-1] > least:
        sizes.append(max(least, min(sizes[-1] - 1, int(sizes[-1] / _FINER))))
    if not holds(most):
        return None
    enough, too_small = 0, len(sizes)
    while too_small - enough > 1:
        middle = (enough + too_small) // 2
        enough, too_small = (middle, too_small) if holds(sizes[middle]) else (enough, middle)
    return sizes[enough]
