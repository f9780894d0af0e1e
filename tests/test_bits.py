"""Numbers of few bits, packed: against Python's own integers."""

from __future__ import annotations

import random

import pytest
import torch

from softcache.codecs._bits import Bits


@pytest.mark.parametrize(
    "widths",
    [[1], [8] * 3, [5] * 1000, [4] * 7, [16, 16], [0, 3, 0], [0], [0, 0], [7, 16, 1, 13, 0, 16, 2], [10] * 21_841],
    ids=lambda widths: f"{len(widths)} of {widths[0]}",
)
def test_packed_numbers_are_those_of_one_long_integer(widths: list[int]) -> None:
    rng = random.Random(0)
    rows = [[rng.choice([0, 2**width - 1, rng.randrange(2**width)]) for width in widths] for _ in range(3)]
    bits = Bits(widths)
    packed = bits.pack(torch.tensor(rows))
    assert packed.dtype == torch.uint8
    assert packed.shape == (3, -(-sum(widths) // 8)) == (3, bits.bytes)
    for row, found in zip(rows, packed, strict=True):
        whole = at = 0
        for number, width in zip(row, widths, strict=True):
            whole |= number << at
            at += width
        assert int.from_bytes(bytes(found.tolist()), "little") == whole
    assert bits.unpack(packed).tolist() == rows


def test_no_rows_are_no_bytes() -> None:
    bits = Bits([5, 6])
    assert bits.pack(torch.zeros(0, 2, dtype=torch.int64)).shape == (0, 2)
    assert bits.unpack(torch.zeros(0, 2, dtype=torch.uint8)).shape == (0, 2)
