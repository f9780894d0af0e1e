"""Levels that coefficients are rounded to, and how many of them each direction has."""

from __future__ import annotations

import math

import torch

from softcache.codecs._basis_layout import WIDEST

# The mean squared error of the best rounding of a Gaussian number of variance 1 to 2**k levels, k = 0 … 8.
LLOYD_MAX = (1.0, 0.3634, 0.1175, 0.03454, 0.009497, 0.002499, 0.0006442, 0.0001635, 0.00004118)
_ROUNDS = 100  # of Lloyd's iteration
_CELLS, _REACH = 20_000, 20.0  # of the density: so many cells from 0 to 20 standard deviations
_SHAPES = (0.6, 8.0)  # from tails much heavier than a Laplacian's (1) to nearly even (2: a Gaussian)


def begins(width: int) -> int:
    """Where the 2**width levels begin in the table of all levels, which has those of 1 bit first.

    >>> [begins(width) for width in (1, 2, 3)]
    [0, 2, 6]
    """
    return 2**width - 2


def share_bits(variances: torch.Tensor, bits: int) -> torch.Tensor:
    """Bits for each direction, (R,) int64 of at most 8, so that the sum of mean squared errors is least: each bit goes
    where it takes away most (reverse water-filling in whole bits). A direction of variance 0 has none.

    ``variances``: (R,) float64.

    >>> share_bits(torch.tensor([100.0, 10.0, 1.0], dtype=torch.float64), 5).tolist()
    [4, 1, 0]
    """
    errors = torch.tensor(LLOYD_MAX, dtype=torch.float64)
    gains = (variances[:, None] * (errors[:-1] - errors[1:])).flatten()
    order = gains.argsort(descending=True, stable=True)[: max(0, bits)]
    return torch.bincount(order[gains[order] > 0] // WIDEST, minlength=len(variances))


def levels_for(coefficients: torch.Tensor, widths: torch.Tensor) -> torch.Tensor:
    """A table of 2 + 4 + … + 256 levels, float64: those of a width have the least mean squared error (Lloyd 1957, Max
    1960) for a generalized Gaussian density, of mean 0, variance 1 and the shape of what directions of that width have.

    ``coefficients``: (K, R) float64 of variance 1; ``widths``: (R,) bits.
    """
    table = torch.zeros(begins(WIDEST + 1), dtype=torch.float64)
    for width in widths[widths > 0].unique().tolist():
        table[begins(width) : begins(width + 1)] = _lloyd_max(_shape(coefficients[:, widths == width]), 2**width)
    return table


def _shape(pool: torch.Tensor) -> float:
    """The exponent b of the density exp(-(|x| / a)**b) for which E|x| / sqrt(E x²) is that of the pool."""
    wanted = float(pool.abs().mean() / pool.square().mean().sqrt().clamp_min(1e-300))
    low, high = _SHAPES
    for _ in range(60):
        shape = (low + high) / 2
        ratio = math.exp(math.lgamma(2 / shape) - (math.lgamma(1 / shape) + math.lgamma(3 / shape)) / 2)
        low, high = (shape, high) if ratio < wanted else (low, shape)
    return (low + high) / 2


def _lloyd_max(shape: float, count: int) -> torch.Tensor:
    """(count,) levels, symmetric about 0."""
    x = (torch.arange(_CELLS, dtype=torch.float64) + 0.5) * (_REACH / _CELLS)
    scale = math.exp((math.lgamma(1 / shape) - math.lgamma(3 / shape)) / 2)
    density = torch.exp(-((x / scale) ** shape))
    # In the limit of many levels their density is the cube root of this one (Panter and Dite 1951).
    wide = density.pow(1 / 3).cumsum(0)
    at = (torch.arange(count // 2, dtype=torch.float64) + 0.5) / (count // 2)
    levels = x[torch.searchsorted(wide, at * wide[-1])]
    mass, moment = (torch.nn.functional.pad(part.cumsum(0), (1, 0)) for part in (density, density * x))
    for _ in range(_ROUNDS):
        ends = torch.searchsorted(x, (levels[1:] + levels[:-1]) / 2)
        ends = torch.cat([ends.new_zeros(1), ends, ends.new_full((1,), _CELLS)])
        within = mass[ends].diff()
        levels = torch.where(within > 0, moment[ends].diff() / within.clamp_min(1e-300), levels)
    return torch.cat([-levels.flip(0), levels])
