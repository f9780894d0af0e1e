"""Keys draw numbers by integer arithmetic alone: checked against Python's big integers and against chi-squared."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softcache.views import _tables
from softcache.views._keys import Keys, chances, integers

MASK = (1 << 64) - 1
WORD = st.integers(0, MASK)


def splitmix(x: int) -> int:
    """Steele, Lea, Flood 2014, on big integers."""
    z = (x + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def chi_squared(counts: np.ndarray) -> float:
    """How many standard deviations a chi-squared statistic of uniform counts lies from its mean."""
    expected = counts.sum() / counts.size
    statistic = ((counts - expected) ** 2).sum() / expected
    return (statistic - (counts.size - 1)) / math.sqrt(2 * (counts.size - 1))


def test_the_hash_is_splitmix64() -> None:
    # the first outputs for seed 1234567, as the generator's public reference implementation prints them
    state, outputs = 1234567, []
    for _ in range(3):
        outputs.append(splitmix(state))
        state = (state + 0x9E3779B97F4A7C15) & MASK
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(seed=WORD, index=st.integers(0, 2**40), view=st.integers(0, 2**20), position=st.integers(0, 9))
@settings(max_examples=50, deadline=None)
def test_words_are_a_chain_of_hashes(seed: int, index: int, view: int, position: int) -> None:
    state = 0
    for part in (seed, view, position, index):
        state = splitmix(state ^ part)
    expected = [splitmix((state + k * 0x9E3779B97F4A7C15) & MASK) for k in range(4)]
    assert Keys(seed, np.array([index]), view, position).words(4)[0].tolist() == expected


@given(word=WORD, below=st.integers(1, 2**32))
@settings(max_examples=100, deadline=None)
def test_integers_are_the_high_half_of_a_product(word: int, below: int) -> None:
    found = int(integers(np.array([word], np.uint64), below)[0])
    assert found == (word >> 32) * below >> 32
    assert 0 <= found < below


def test_chances_at_their_ends() -> None:
    ends = np.array([0, MASK], np.uint64)
    assert chances(ends, 0.0).tolist() == [False, False]
    assert chances(ends, 1.0).tolist() == [True, True]
    assert chances(ends, 0.5).tolist() == [True, False]


@pytest.mark.parametrize("along", ["index", "view", "position", "seed", "counter"])
def test_numbers_are_uniform_and_neighbours_independent(along: str) -> None:
    rows = np.arange(20000)
    if along == "index":
        words = Keys(1, rows, 2, 0).words(1)[:, 0]
    elif along == "counter":
        words = Keys(1, np.array([5]), 2, 0).words(len(rows))[0]
    else:
        make = {
            "view": lambda n: Keys(1, np.array([5]), n, 0),
            "position": lambda n: Keys(1, np.array([5]), 2, n),
            "seed": lambda n: Keys(n, np.array([5]), 2, 0),
        }[along]
        words = np.concatenate([make(n).words(1)[0] for n in range(1500)])
    nine = integers(words, 9)
    assert abs(chi_squared(np.bincount(nine, minlength=9))) < 5
    # each number together with the next one's: all 81 pairs alike often
    assert abs(chi_squared(np.bincount(nine[:-1] * 9 + nine[1:], minlength=81))) < 5


def test_normal_quantiles_are_right_and_far_from_rounding_both_ways() -> None:
    table = _tables.normal()
    assert len(table) == 65536
    assert (np.diff(table) >= 0).all()
    assert abs(table.mean()) < 1e-9
    assert table.std() / 65536 == pytest.approx(1, abs=2e-5)
    quantiles = [NormalDist().inv_cdf((2 * k + 1) / 131072) * 65536 for k in range(32768, 65536)]
    # whichever way the last bits of a platform's logarithm fall, they are a million times smaller than this
    assert min(abs(abs(q - math.floor(q)) - 0.5) for q in quantiles) > 1e-6


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.5, 1.0, 2.0, 5.0])
def test_beta_shares_have_the_moments_of_beta(alpha: float) -> None:
    words = (np.arange(1 << 16, dtype=np.uint64) << np.uint64(48)) + np.uint64(1 << 47)  # evenly spaced
    share = _tables.beta_shares(words, alpha) / 65536
    assert share.mean() == pytest.approx(0.5, abs=1e-4)
    assert share.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=2e-3)
    assert share.min() >= 0
    assert share.max() <= 1


@pytest.mark.parametrize(
    ("alpha", "distribution"),
    [
        (0.5, lambda x: 2 / math.pi * math.asin(math.sqrt(x))),
        (1.0, lambda x: x),
        (2.0, lambda x: 3 * x**2 - 2 * x**3),
        (3.0, lambda x: 10 * x**3 - 15 * x**4 + 6 * x**5),
    ],
)
def test_beta_table_is_the_closed_form(alpha: float, distribution) -> None:
    expected = [distribution(j / 1024) for j in range(1025)]
    np.testing.assert_allclose(_tables._beta(alpha) / 2**32, expected, atol=2**-31)


def test_log_uniform_ratios_are_exponentials() -> None:
    ratio = (0.75, 1.3333)
    ratios = _tables.log_uniform(*ratio)
    with localcontext() as context:
        context.prec = 50
        low, high = (Decimal(end).ln() for end in ratio)
        for k in (0, 1, 511, 1023):
            exact = (low + (high - low) * (2 * k + 1) / 2048).exp() * 2**32
            assert abs(exact - ratios[k]) <= Decimal("0.5")
