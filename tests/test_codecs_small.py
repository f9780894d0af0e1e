"""Codecs of few bits, for any numbers: ``int`` is within its bound."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from softcache.codecs._open import open_codec
from softcache.errors import UsageError

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


@pytest.mark.parametrize("spec", ["int:bits=3", "int:bits=9", "int:bits=0"])
def test_options_that_nothing_can_be_kept_by_are_refused(spec: str) -> None:
    with pytest.raises(UsageError, match="4 to 8 bits"):
        open_codec(spec)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("spec", ["int:bits=8", "int:bits=5"])
def test_bytes_are_the_same_on_every_device(spec: str, device: str) -> None:
    logits = torch.randn(300, 70, generator=torch.Generator().manual_seed(1)) * 4
    logits[5:50] = logits[5:50].round()  # many ties
    coder, here = coded(open_codec(spec), logits)
    there = coder.encode(logits.to(device))
    for name, array in here.items():
        assert torch.equal(array, there[name].cpu()), name
    assert torch.equal(coder.decode(here), coder.decode(there).cpu())
