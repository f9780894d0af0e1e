"""The smallest size in which ``basis`` keeps values as well as is asked for."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from softcache.codecs._basis_coding import Coding
from softcache.codecs._basis_fit import MOST_VECTORS, spectrum_of
from softcache.codecs._basis_layout import Layout

_FINER = 1.03  # from one size that is tried to the next
_JUDGED = 1024  # vectors, at most
_JUDGED_SAMPLES = 64  # at least, if each has many


def smallest(
    samples: torch.Tensor,
    good: Callable[[torch.Tensor, torch.Tensor], bool],
    layout: Callable[[int], Layout],
    least: int,
    most: int,
) -> int | None:
    """The smallest number of bytes from ``least`` to ``most`` that is ``good`` on every fourth sample, after a fit on
    the others; None where not even ``most`` is enough.

    ``samples``: (K, P, N), of P vectors each. ``good``: whether samples (k, P, N) are well enough kept as others.
    ``layout``: of so many bytes.
    """
    samples = samples[:: -(-len(samples) // MOST_VECTORS)].float()
    held_out = torch.arange(len(samples)) % 4 == 3
    fitted_on, judged = (samples[~held_out], samples[held_out]) if len(samples) > 3 else (samples, samples)
    judged = judged[: max(_JUDGED_SAMPLES, _JUDGED // max(1, samples.shape[1]))]
    spectrum = spectrum_of(fitted_on.flatten(0, 1), layout(most).rank)

    def holds(size: int) -> bool:
        coding = Coding(layout(size), spectrum.constants(layout(size)))
        return good(judged, coding.decode(coding.encode(judged.flatten(0, 1))).view_as(judged))

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


def divergence(said: torch.Tensor, kept: torch.Tensor) -> float:
    """The mean over all vectors (…, C) of the divergence of their softmax answers at T = 1."""
    p, q = F.log_softmax(said.double(), -1), F.log_softmax(kept.double(), -1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def error(said: torch.Tensor, kept: torch.Tensor) -> float:
    """The mean over samples (K, …) of their relative error; of one that is all zeros, its error."""
    said, kept = said.double().flatten(1), kept.double().flatten(1)
    size = said.norm(dim=1)
    return float(((kept - said).norm(dim=1) / torch.where(size > 0, size, 1.0)).mean())
