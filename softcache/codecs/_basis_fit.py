"""What ``basis`` is fitted to: the mean, the principal directions, the bits and the levels of their coefficients."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from softcache.codecs._basis_layout import WIDEST, Layout
from softcache.codecs._basis_levels import begins, levels_for, share_bits

MOST_VECTORS = 4096  # that directions are fitted to; of samples with many positions every so manieth


def constant_arrays(layout: Layout) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name → dtype and shape of what is fitted."""
    return {
        "mean": ("<f4", (layout.numbers,)),
        "directions": ("<f4", (layout.rank, layout.numbers)),
        "widths": ("|u1", (layout.rank,)),
        "levels": ("<f4", (begins(WIDEST + 1),)),
    }


@dataclass(frozen=True)
class Spectrum:
    """Principal directions of vectors, all float64. ``mean``: (N,). ``variances``: (R,), falling. ``axes``: (R, N), of
    length 1. ``coefficients``: (K, R), of variance 1 or all 0."""

    mean: torch.Tensor
    variances: torch.Tensor
    axes: torch.Tensor
    coefficients: torch.Tensor

    def constants(self, layout: Layout) -> dict[str, torch.Tensor]:
        """Rows of ``directions`` are axes, each as long as the standard deviation of its coefficient. Those that have
        no bits, and those that fewer vectors than ``layout.rank`` don't have, are zeros."""
        widths = share_bits(self.variances[: layout.rank], layout.bits)
        kept = widths.nonzero().flatten()
        levels = levels_for(self.coefficients[:, kept], widths[kept])
        directions = torch.zeros(layout.rank, layout.numbers)
        directions[kept] = (self.axes[kept] * self.variances[kept, None].sqrt()).float()
        all_widths = torch.zeros(layout.rank, dtype=torch.uint8)
        all_widths[kept] = widths[kept].to(torch.uint8)
        return {"mean": self.mean.float(), "directions": directions, "widths": all_widths, "levels": levels.float()}


def spectrum_of(vectors: torch.Tensor, rank: int) -> Spectrum:
    """Of vectors (K, N) on the CPU, at most ``rank`` directions, by arithmetic on one thread. Of each axis the largest
    number in magnitude is positive."""
    vectors = vectors[:: -(-len(vectors) // MOST_VECTORS)].double()
    with _one_thread():
        mean = vectors.mean(0)
        centred = vectors - mean
        variances, axes = _principal(centred, rank)
        coefficients = centred @ axes.T / variances.sqrt().clamp_min(1e-300)
    return Spectrum(mean, variances, axes, torch.where(variances > 0, coefficients, 0.0))


def _principal(centred: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Variances (R,) and axes (R, N)."""
    count, numbers = centred.shape
    scale = centred.abs().max().clamp_min(1e-300)  # so that no square overflows or vanishes
    centred = centred / scale
    if numbers <= count:
        variances, axes = torch.linalg.eigh(centred.T @ centred / count)
        variances, axes = variances.flip(0)[:rank], axes.T.flip(0)[:rank]
    else:  # the smaller matrix, of products of vectors, has the same eigenvalues
        variances, sides = torch.linalg.eigh(centred @ centred.T / count)
        variances, sides = variances.flip(0)[:rank], sides.T.flip(0)[:rank]
        axes = torch.nn.functional.normalize(sides @ centred, dim=1)
    variances = torch.where(variances > variances[:1] * numbers * 1e-15, variances, 0.0)
    signs = axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    return variances * scale**2, axes * torch.where(signs == 0, 1.0, signs)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """The number of threads decides the last bits of sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
