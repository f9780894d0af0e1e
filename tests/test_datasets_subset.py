"""Hashes and the subsets of rows that they choose."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softcache.datasets._hash import GAMMA, MASK, finalize, splitmix64
from softcache.datasets._subset import holdout_rows, labelled_rows, rows_for_test
from softcache.errors import UsageError


def splitmix64_of_an_integer(x: int) -> int:
    z = (x + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def test_splitmix64_gives_the_published_sequence():
    # the reference outputs for seed 1234567
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [int(splitmix64((1234567 + k * GAMMA) & MASK)) for k in range(5)] == expected
    assert finalize(np.uint64(0)).shape == ()
    assert splitmix64(np.zeros((2, 3), dtype=np.uint64)).shape == (2, 3)


def test_splitmix64_does_not_change_its_input():
    states = np.arange(4, dtype=np.uint64)
    splitmix64(states)
    finalize(states)
    assert states.tolist() == [0, 1, 2, 3]


@given(st.integers(0, 2**64 - 1))
def test_splitmix64_equals_integer_arithmetic(x):
    assert int(splitmix64(x)) == splitmix64_of_an_integer(x)


@given(
    st.lists(st.integers(-1, 4), min_size=1, max_size=200),
    st.floats(0.001, 1),
    st.floats(0.001, 1),
    st.integers(-(2**40), 2**70),
)
def test_labelled_rows_are_stratified_and_nested(labels, a, b, seed):
    small, large = sorted((a, b))
    array = np.array(labels)
    chosen, more = labelled_rows(array, small, seed), labelled_rows(array, large, seed)
    assert not (chosen & ~more).any()
    assert not chosen[array == -1].any()
    for label in set(labels) - {-1}:
        count = int((array == label).sum())
        got = int(chosen[array == label].sum())
        assert 1 <= got <= count
        assert small * count - 1e-6 <= got < small * count + 1


def test_labelled_rows_do_not_depend_on_binary_rounding():
    assert int(labelled_rows(np.zeros(100, dtype=int), 0.07, 0).sum()) == 7


def test_labelled_rows_of_one_and_of_another_seed():
    labels = np.arange(1000) % 10
    assert labelled_rows(labels, 1.0, 3).all()
    first, second = labelled_rows(labels, 0.5, 0), labelled_rows(labels, 0.5, 1)
    # 500 of 1000 twice, independent: 250 ± 4 standard deviations of a hypergeometric draw
    assert 190 < int((first & second).sum()) < 310


def test_holdout_never_takes_a_whole_class_and_is_no_function_of_the_labelled():
    labels = np.repeat([0, 1, 2, -1], [1, 2, 400, 10])
    held = holdout_rows(labels, 0.5, 0)
    assert [int(held[labels == c].sum()) for c in (0, 1, 2, -1)] == [0, 1, 200, 5]
    both = held & labelled_rows(labels, 0.5, 0)
    assert 60 < int(both[labels == 2].sum()) < 140


@pytest.mark.parametrize("fraction", [0, -0.1, 1.1, float("nan")])
def test_fractions_outside_their_range(fraction):
    with pytest.raises(UsageError, match="fraction"):
        labelled_rows(np.zeros(3, dtype=int), fraction, 0)
    with pytest.raises(UsageError, match="fraction"):
        holdout_rows(np.zeros(3, dtype=int), fraction, 0)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=100))
def test_rows_for_test_are_a_rounded_fifth_of_each_class(labels):
    array = np.array(labels)
    chosen = rows_for_test(array)
    for label in set(labels):
        rows = sorted(np.flatnonzero(array == label).tolist(), key=splitmix64_of_an_integer)
        assert set(np.flatnonzero(chosen & (array == label))) == set(rows[: int(len(rows) / 5 + 0.5)])
