"""Codecs of few bits, for any numbers: ``int`` is within its bound, ``topk`` keeps leaders and the tail's share."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from softcache.cache.column import Column
from softcache.codecs._open import open_codec
from softcache.errors import UsageError
from softcache.losses._target import Leaders, changed, joined_targets

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
NEAR = st.floats(-30, 30, width=32)
LARGEST = float(np.finfo(np.float32).max)
LIMITS = [
    [[3e38, -3e38, 3e38, -3e38, 0.0]],
    [[LARGEST, LARGEST, -LARGEST, 1.0, -1.0]],
    [[1e-45, 0.0, -1e-45, 1e-38, 2e-45]],
    [[1e-45, 2e-45, 3e-45, 4e-45, 5e-45]],
    [[7.25] * 5, [0.0] * 5, [-3e38] * 5],
    [[1e30, 1e30, 1e30, 1e30, 1.000001e30]],
    [[1000.0, 1000.5, 1001.0, 999.0, 999.5]],
]


def coded(codec: Any, values: torch.Tensor) -> tuple[Any, dict[str, torch.Tensor]]:
    coder = codec.shaped(tuple(values.shape[1:]))
    return coder, coder.encode(values)


def in_bytes(codec: Any, shape: tuple[int, ...]) -> int:
    return sum(np.dtype(dtype).itemsize * math.prod(tail) for dtype, tail in codec.arrays(shape).values())


def within(values: np.ndarray, decoded: np.ndarray, bits: int) -> None:
    """The bound of ``int``'s docstring, for rows of numbers that share a range."""
    exact, levels = values.astype(np.float64), 2**bits - 1
    largest = exact.max(-1, keepdims=True)
    step = (1 + 2**-7) * np.maximum((largest - exact.min(-1, keepdims=True)) / levels, np.abs(largest) / 2047)
    assert np.isfinite(decoded).all()
    assert (np.abs(decoded.astype(np.float64) - exact) <= 0.54 * np.maximum(step, 2.0**-133)).all()


def every_limit(test: Any) -> Any:
    for rows in LIMITS:
        test = example(np.array(rows, np.float32), 4)(example(np.array(rows, np.float32), 8)(test))
    return test


@every_limit
@given(
    arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=70), elements=st.one_of(FLOATS, NEAR)),
    st.integers(4, 8),
)
def test_int_is_within_its_bound_for_any_finite_numbers(values: np.ndarray, bits: int) -> None:
    coder, kept = coded(open_codec(f"int:bits={bits}"), torch.from_numpy(values))
    within(values, coder.decode(kept).numpy(), bits)


@pytest.mark.parametrize(
    "shape", [(), (1,), (63,), (64,), (21_841,), (3, 64), (3, 63), (4, 8, 8), (4, 7, 9), (2, 3, 4, 65)]
)
@pytest.mark.parametrize("bits", [4, 5, 6, 7, 8])
def test_int_takes_closed_form_bytes_and_shares_ranges_as_it_says(shape: tuple[int, ...], bits: int) -> None:
    own = shape[:1] if len(shape) == 3 else shape[:-1]
    size = math.prod(shape)
    ranges = own if size >= 64 * math.prod(own) else ()
    codec = open_codec(f"int:bits={bits}")
    assert in_bytes(codec, shape) == math.ceil(size * bits / 8) + 4 * math.prod(ranges)
    rng = np.random.default_rng(size)
    scale = np.exp(rng.uniform(-20, 20, (*ranges, *[1] * (len(shape) - len(ranges))))).astype(np.float32)
    values = rng.standard_normal((3, *shape)).astype(np.float32) * scale
    coder, kept = coded(codec, torch.from_numpy(values))
    assert {name: (array.element_size(), tuple(array.shape)) for name, array in kept.items()} == {
        name: (np.dtype(dtype).itemsize, (3, *tail)) for name, (dtype, tail) in codec.arrays(shape).items()
    }
    decoded = coder.decode(kept)
    assert decoded.shape == values.shape
    within(values.reshape(3, *ranges, -1), decoded.numpy().reshape(3, *ranges, -1), bits)
    assert coder.decode({name: array[:0] for name, array in kept.items()}).shape == (0, *shape)
    assert all(len(array) == 0 for array in coder.encode(torch.from_numpy(values[:0])).values())


def test_the_largest_of_a_row_is_exact_but_for_a_shift_of_all() -> None:
    """What a softmax sees of it: differences from the largest are whole steps."""
    values = torch.randn(200, 100) * 10 + torch.randn(200, 1) * 50
    coder, kept = coded(open_codec("int:bits=4"), values)
    steps = kept["step"].view(torch.bfloat16).float()
    below = (coder.decode(kept).amax(1, keepdim=True) - coder.decode(kept)).double() / steps.double()[:, None]
    assert bool((below.round() == below).all())
    exact = (values.amax(1, keepdim=True) - values).double() / steps.double()[:, None]
    assert bool(((below - exact).abs() <= 0.5 + 1 / 32 + 1e-3).all())


@pytest.mark.parametrize("spec", ["int:bits=3", "int:bits=9", "int:bits=0", "topk:k=0", "topk:k=-1"])
def test_options_that_nothing_can_be_kept_by_are_refused(spec: str) -> None:
    with pytest.raises(UsageError, match=r"4 to 8 bits|at least 1"):
        open_codec(spec)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("spec", ["int:bits=8", "int:bits=5", "topk:k=3"])
def test_bytes_are_the_same_on_every_device(spec: str, device: str) -> None:
    logits = torch.randn(300, 70, generator=torch.Generator().manual_seed(1)) * 4
    logits[5:50] = logits[5:50].round()  # many ties
    coder, here = coded(open_codec(spec), logits)
    there = coder.encode(logits.to(device))
    for name, array in here.items():
        assert torch.equal(array, there[name].cpu()), name
    assert torch.equal(coder.decode(here), coder.decode(there).cpu())


OWN = """
import math
from dataclasses import dataclass

import torch


class Shaped:
    def __init__(self, shape):
        self.shape = shape

    def encode(self, values):
        return {"flat": values.flatten(1).round().to(torch.int8)}

    def decode(self, arrays):
        return arrays["flat"].float().reshape(-1, *self.shape)


@dataclass(frozen=True)
class Own:
    works: bool = True

    def arrays(self, shape):
        return {"flat": ("|i1", (math.prod(shape),))}

    def shaped(self, shape):
        return Shaped(shape) if self.works else 3
"""


def test_a_codec_of_ones_own_is_told_the_shape_too(here: Path) -> None:
    (here / "own.py").write_text(OWN)
    column = Column("x", "values", (3, 4), open_codec("own.py:Own"), 64)
    values = torch.arange(24.0).reshape(2, 3, 4)
    assert torch.equal(column.decode(column.encode(values)), values)
    with pytest.raises(UsageError, match=r"shaped\(\) gave int without encode or decode"):
        Column("x", "values", (3, 4), open_codec("own.py:Own:works=false"), 64).encode(values)


# ---- Leaders and a tail. ----


def probabilities(logits: np.ndarray, T: float) -> np.ndarray:
    z = logits.astype(np.float64) / T
    z = z - z.max(-1, keepdims=True)
    return np.exp(z) / np.exp(z).sum(-1, keepdims=True)


@st.composite
def logits_and_k(draw: st.DrawFn, elements: st.SearchStrategy[float]) -> tuple[np.ndarray, int]:
    logits = draw(arrays(np.float32, array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=30), elements=elements))
    return logits, draw(st.integers(1, logits.shape[1] - 1))


def leaders_of(logits: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, Leaders]:
    """Which classes lead in a stable order, those of the tail, and what comes back."""
    order = np.argsort(-logits.astype(np.float64), axis=1, kind="stable")
    coder, kept = coded(open_codec(f"topk:k={k}"), torch.from_numpy(logits))
    return order[:, :k], order[:, k:], coder.target(kept)


@given(logits_and_k(st.one_of(FLOATS, NEAR)))
@example((np.array(LIMITS[0], np.float32), 2))
@example((np.array(LIMITS[1], np.float32), 3))
@example((np.array(LIMITS[3], np.float32), 4))
@example((np.array(LIMITS[4], np.float32), 2))
@example((np.array([[LARGEST, -LARGEST]], np.float32), 1))
def test_leaders_are_within_their_bound_and_others_are_one_number(given: tuple[np.ndarray, int]) -> None:
    logits, k = given
    first, tail, kept = leaders_of(logits, k)
    for T in (0.5, 1, 2, 3, 4, 8, 1000):
        dense = kept.at(T).numpy()
        assert np.isfinite(dense).all()
        exact, leading = (np.take_along_axis(each, first, 1).astype(np.float64) for each in (logits, dense))
        below = exact[:, :1] - exact
        near = below <= 3.38e38
        bound = 2**-9 * below + 2.0**-135 + np.abs(leading) * 2**-23 + 2.0**-148
        assert (np.abs(leading - exact) <= bound)[near].all()
        assert (leading[:, 0] == exact[:, 0]).all()
        others = np.take_along_axis(dense, tail, 1)
        assert (others == others[:, :1]).all()


@given(logits_and_k(NEAR))
def test_the_tail_has_the_teachers_probability_at_1_2_and_4(given: tuple[np.ndarray, int]) -> None:
    logits, k = given
    _, tail, kept = leaders_of(logits, k)
    flat = []
    for T, close in ((1, 2e-5), (2, 1e-2), (4, 1e-2)):
        wanted, found = (
            np.take_along_axis(probabilities(each, T), tail, 1).sum(1) for each in (logits, kept.at(T).numpy())
        )
        odds = [
            np.log(np.clip(mass, 1e-300, None)) - np.log1p(-np.clip(mass, None, 1 - 1e-16)) for mass in (wanted, found)
        ]
        assert (np.abs(odds[1] - odds[0]) <= close * np.maximum(1, np.abs(odds[0]) / 100)).all(), T
        flat.append(np.take_along_axis(kept.at(T).numpy(), tail, 1)[:, 0])
    # between them it lies between, above 4 it goes on falling, below 1 it stays
    assert (np.diff(flat, axis=0) <= 0).all()
    at = {T: np.take_along_axis(kept.at(T).numpy(), tail, 1)[:, 0] for T in (0.5, 1.5, 3, 8, 1e9)}
    np.testing.assert_array_equal(at[0.5], flat[0])
    np.testing.assert_allclose(at[1.5], flat[0] + (flat[1] - flat[0]) * (1 - 1 / 1.5) / 0.5, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(at[3], flat[1] + (flat[2] - flat[1]) * (1 / 2 - 1 / 3) / 0.25, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(at[8], flat[2] + (flat[2] - flat[1]) / 2, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(at[1e9], 2 * flat[2] - flat[1], rtol=1e-5, atol=1e-5)


def test_at_a_high_temperature_the_tail_is_near_its_mean() -> None:
    """To the second order in 1/T the one logit is mean + variance / 2T, which a line in 1/T has exactly."""
    logits = np.random.default_rng(0).normal(0, 1, (50, 300)).astype(np.float32)
    _, tail, kept = leaders_of(logits, 20)
    others = np.take_along_axis(logits, tail, 1).astype(np.float64)
    for T in (8, 16):
        wanted = T * np.log(np.exp(others / T).mean(1))
        found = np.take_along_axis(kept.at(T).numpy(), tail, 1)[:, 0]
        assert np.abs(wanted - found).max() < 0.01


@pytest.mark.parametrize(("classes", "k", "size"), [
    (100, 10, 4 + 18 + 9 + 8), (1000, 10, 4 + 18 + 13 + 8), (100, 20, 4 + 38 + 18 + 8), (1000, 50, 4 + 98 + 63 + 8),
    (2, 1, 4 + 1 + 8), (21_841, 20, 4 + 38 + 38 + 8), (65_536, 3, 4 + 4 + 6 + 8), (65_537, 3, 4 + 4 + 7 + 8),
    (200_000, 30, 4 + 58 + 68 + 8),
])  # fmt: skip
def test_topk_takes_closed_form_bytes_and_finds_every_class_again(classes: int, k: int, size: int) -> None:
    codec = open_codec(f"topk:k={k}")
    bits = math.ceil(math.log2(classes))
    assert in_bytes(codec, (classes,)) == size == 4 + 2 * (k - 1) + math.ceil(k * bits / 8) + 4 + 2 * 2
    logits = np.random.default_rng(classes).normal(0, 3, (4, classes)).astype(np.float32)
    logits[0, -k:] = 50 + np.arange(k)
    first, _, kept = leaders_of(logits, k)
    assert (np.sort(first, 1) == np.nonzero(kept.logits.numpy() > -np.inf)[1].reshape(4, k)).all()


def test_positions_have_leaders_of_their_own_and_no_rows_have_none() -> None:
    logits = torch.randn(6, 4, 9)
    coder, kept = coded(open_codec("topk:k=2"), logits)
    alone, each = coded(open_codec("topk:k=2"), logits.flatten(0, 1))
    assert torch.equal(coder.decode(kept), alone.decode(each).view(6, 4, 9))
    assert coder.decode(coder.encode(logits[:0])).shape == (0, 4, 9)


@pytest.mark.parametrize("classes", [20, 3, 1])
def test_as_many_leaders_as_classes_are_refused(classes: int) -> None:
    with pytest.raises(
        UsageError, match=f"would keep all logits of {classes} classes: take a smaller k, or int:bits=8"
    ):
        open_codec("topk:k=20").arrays((classes,))


def test_equal_logits_lead_in_the_order_of_their_classes() -> None:
    coder, kept = coded(open_codec("topk:k=3"), torch.tensor([[1.0, 2.0, 1.0, 1.0, 2.0, 1.0]]))
    assert coder.target(kept).logits.isfinite().tolist() == [[True, True, False, False, True, False]]


def test_whole_logits_and_leaders_are_joined_to_one_target() -> None:
    logits = torch.randn(5, 7)
    coder, kept = coded(open_codec("topk:k=2"), logits[:2])
    leading = coder.target(kept)
    whole = joined_targets([leading, logits[2:]])
    assert isinstance(whole, Leaders)
    for T in (1.0, 4.0):
        assert torch.equal(whole.at(T), torch.cat([leading.at(T), logits[2:]]))
    assert torch.equal(joined_targets([logits[:2], logits[2:]]), logits)  # type: ignore[arg-type]
    some = changed(whole, lambda values: values[[3, 0]])
    assert isinstance(some, Leaders)
    assert torch.equal(some.at(2.0), whole.at(2.0)[[3, 0]])
