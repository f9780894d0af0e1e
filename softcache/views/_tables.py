"""Distributions as tables of integers that are equal on every machine.

``decimal`` rounds +, -, ·, /, exp and ln correctly on every platform, whereas the last bits of libm's functions differ.
"""

from __future__ import annotations

import decimal
import functools
import statistics
from decimal import Decimal

import numpy as np
import numpy.typing as npt

from softcache.datasets._hash import UInt64
from softcache.views._keys import Int64

RATIO_BITS = 10  # a log-uniform ratio is one of 1024
NORMAL_BITS = 16  # a normal number is one of 65536
BETA_BITS = 10  # the distribution function of Beta is exact at 1025 places and linear in between
LARGEST_ALPHA = 20.0
ONE = 1 << 16  # shares are in 1/65536

_CONTEXT = decimal.Context(prec=40, rounding=decimal.ROUND_HALF_EVEN, Emin=-(10**8), Emax=10**8, traps=[])


@functools.lru_cache(maxsize=16)
def log_uniform(low: float, high: float) -> tuple[int, ...]:
    """1024 ratios in 1/2**32 at equal steps of their logarithm: the middles of as many equal parts of [low, high]."""
    with decimal.localcontext(_CONTEXT):
        first, last = Decimal(low).ln(), Decimal(high).ln()
        parts = 1 << RATIO_BITS
        steps = (first + (last - first) * (2 * k + 1) / (2 * parts) for k in range(parts))
        return tuple(int((step.exp() * (1 << 32)).to_integral_value()) for step in steps)


@functools.cache
def normal() -> Int64:
    """(65536,) int64: the standard normal's quantiles (k + ½)/65536, in 1/65536, in order.

    ``statistics`` computes with floats and a logarithm, but no quantile lies so near to the middle of two integers
    that a last bit would show.
    """
    half = 1 << (NORMAL_BITS - 1)
    quantile = statistics.NormalDist().inv_cdf
    upper = np.array([round(quantile((2 * k + 1) / (4 * half)) * ONE) for k in range(half, 2 * half)])
    return np.concatenate([-upper[::-1], upper])


@functools.lru_cache(maxsize=16)
def _beta(alpha: float) -> Int64:
    """(1025,) int64: the distribution function of Beta(alpha, alpha) at j/1024, in 1/2**32."""
    half = 1 << (BETA_BITS - 1)
    with decimal.localcontext(_CONTEXT):
        a = Decimal(alpha)
        # ∫₀ˣ t^(a-1) (1-t)^(a-1) dt = xᵃ Σₖ cₖ xᵏ with cₖ = (1-a)(2-a)…(k-a) / (k! (a+k)), and for x ≤ ½ the terms
        # fall at least as fast as 2⁻ᵏ; by symmetry F(½) = ½, so no constant is needed
        rising, terms = Decimal(1), []
        for k in range(100):
            terms.append(rising / (a + k))
            rising *= (k + 1 - a) / (k + 1)
        values = [Decimal(0)]
        for j in range(1, half + 1):
            x, total = Decimal(j) / (2 * half), Decimal(0)
            for term in reversed(terms):
                total = total * x + term
            values.append((a * x.ln()).exp() * total)
        lower = [int((value / values[-1] * (1 << 31)).to_integral_value()) for value in values]
    return np.array(lower + [(1 << 32) - value for value in lower[-2::-1]])


def beta_shares(words: UInt64, alpha: float) -> Int64:
    """Numbers in 0..65536 whose 1/65536 is distributed as Beta(alpha, alpha): the inverse of its table.

    words: any shape, uint64, of which the upper half is used.
    """
    table = _beta(alpha)
    u = (words >> np.uint64(32)).astype(np.int64)
    cell = np.searchsorted(table, u, side="right") - 1  # the last table entry is 2**32, above every u
    step = ONE >> BETA_BITS
    return cell * step + (u - table[cell]) * step // (table[cell + 1] - table[cell])


@functools.lru_cache(maxsize=16)
def normal_steps(std: float, white: int) -> npt.NDArray[np.int16] | npt.NDArray[np.int32]:
    """(65536,): the quantiles of a normal of deviation ``std`` (1 is the range of pixels, 0..``white``), in pixel
    values; int16 for pixels of 8 bits, int32 for wider ones."""
    scale = round(std * white * ONE)
    steps = (normal() * scale + (1 << 31)) >> 32
    return np.clip(steps, -white, white).astype(np.int16 if white < 1 << 15 else np.int32)
