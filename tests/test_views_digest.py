"""The digest is one number, whoever computes it: big integers, NumPy, torch on the host, torch on a device."""

from __future__ import annotations

import hashlib
import json
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from softcache.cache.agreement.decoders import explain_mismatch
from softcache.datasets._values import Values, batch_of, masks_of
from softcache.fields import Fields
from softcache.inputs import InputField
from softcache.views import _digest
from softcache.views._digest import FieldsDigest, digest
from tests.test_views_keys import MASK, splitmix

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def weighted(raw: bytes) -> int:
    """Σ w_j·x_j mod 2**64 over little-endian signed words, on big integers."""
    padded = raw + bytes(-len(raw) % 4)
    words = struct.unpack(f"<{len(padded) // 4}i", padded)
    return sum((splitmix(j) | 1) * word for j, word in enumerate(words)) & MASK


def reference(raw: bytes) -> int:
    """The finalizer is SplitMix64 less its addition."""
    return splitmix((weighted(raw) - 0x9E3779B97F4A7C15) & MASK) >> 32


@given(
    samples=st.integers(1, 40).flatmap(lambda n: st.lists(st.binary(min_size=n, max_size=n), min_size=1, max_size=4))
)
@settings(max_examples=60, deadline=None)
def test_digest_is_the_sum_on_big_integers(samples: list[bytes]) -> None:
    pixels = np.frombuffer(b"".join(samples), np.uint8).reshape(len(samples), -1).copy()
    expected = [reference(sample) for sample in samples]
    assert digest(pixels).tolist() == expected
    assert digest(torch.from_numpy(pixels)).tolist() == expected


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(7, 32, 32, 3), (3, 5, 5, 3), (2, 224, 224, 3), (0, 8, 8, 1)])
def test_arrays_and_tensors_agree(shape: tuple[int, ...], device: str) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    ours = digest(pixels)
    assert ours.dtype == np.uint32
    theirs = digest(torch.from_numpy(pixels).to(device))
    assert theirs.dtype == torch.int64
    assert theirs.cpu().tolist() == ours.tolist()
    # what runs on a device is checked on the host as well
    on_tensors = _digest._shifted(_digest._finalize_tensor(_digest._sums_tensor(torch.from_numpy(pixels))), 32)
    assert on_tensors.tolist() == ours.tolist()
    if len(pixels):
        assert ours[0] == reference(pixels[0].tobytes())


def test_digest_of_a_view_of_memory_is_that_of_its_copy() -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (4, 6, 10, 3), dtype=np.uint8)
    mirrored = pixels[:, :, ::-1]
    assert digest(mirrored).tolist() == digest(mirrored.copy()).tolist()
    assert digest(torch.from_numpy(pixels).flip(2)).tolist() == digest(mirrored).tolist()
    assert digest(mirrored).tolist() != digest(pixels).tolist()


def test_every_single_bit_shows() -> None:
    pixels = np.zeros((9 * 8, 9), np.uint8)
    for bit in range(72):
        pixels[bit, bit // 8] = 1 << bit % 8
    assert len(set(digest(pixels).tolist())) == 72


def named(sample: dict[str, np.ndarray], device: str = "cpu") -> list[int]:
    """The digests of samples that are named arrays of fixed shapes."""
    inputs = {name: InputField(array.dtype.name, list(array.shape[1:])) for name, array in sample.items()}
    fields = Fields({name: torch.from_numpy(array).to(device) for name, array in sample.items()})
    return FieldsDigest(inputs)(fields).tolist()


def by_hand(sample: dict[str, np.ndarray]) -> int:
    """The digest of one sample, as docs/format.md has it, in Python's integers."""
    state = 0
    for name, array in sorted(sample.items()):
        header = json.dumps([name, str(array.dtype), list(array.shape)])
        state = splitmix(state ^ int.from_bytes(hashlib.sha256(header.encode()).digest()[:8], "little"))
        state = splitmix(state ^ weighted(array.tobytes()))
    return state >> 32


@pytest.mark.parametrize("device", DEVICES)
def test_named_samples(device: str) -> None:
    rng = np.random.default_rng(3)
    sample = {
        "token": rng.integers(-9, 9, (3, 5), dtype=np.int64),
        "mask": rng.integers(0, 2, (3, 5), dtype=np.int8),
        "value": rng.normal(size=(3, 2, 2)).astype(np.float32),
        "length": rng.integers(0, 5, (3, 1), dtype=np.int32),
    }
    ours = named(sample, device)
    assert ours == [by_hand({name: array[row] for name, array in sample.items()}) for row in range(3)]
    reordered = {name: sample[name] for name in ("value", "length", "token", "mask")}
    assert named(reordered, device) == ours
    assert named({**sample, "mask": sample["mask"].astype(np.uint8)}, device) != ours
    renamed = {("values" if name == "value" else name): array for name, array in sample.items()}
    assert named(renamed, device) != ours
    assert named({**sample, "value": sample["value"].reshape(3, 4)}, device) != ours


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("pad", [0, 7])
def test_a_row_has_its_digest_at_its_own_length_whatever_it_is_filled_up_with(device: str, pad: int) -> None:
    rng = np.random.default_rng(5)
    rows = [rng.integers(0, 2**15, n, dtype=np.int16) for n in (3, 0, 5, 1)]
    waves = [rng.normal(size=(len(row), 3)) for row in rows]
    offsets = np.cumsum([0, *map(len, rows)])
    values = {
        "ids": Values(np.concatenate(rows), offsets, pad),
        "wave": Values(np.concatenate(waves), offsets),
        "whole": Values(rng.normal(size=(4, 2)).astype(np.float32)),
    }
    of = FieldsDigest({name: held.field for name, held in values.items()})
    masks = masks_of(values)
    assert masks == {"attention_mask": "ids", "wave_mask": "wave"}
    wanted = [by_hand({"ids": rows[row], "wave": waves[row], "whole": values["whole"].values[row]}) for row in range(4)]
    assert of(batch_of(values, np.arange(4), masks).to(device)).tolist() == wanted
    for order in ([2, 0], [1], [3, 3, 1, 0]):
        assert of(batch_of(values, np.array(order), masks).to(device)).tolist() == [wanted[row] for row in order]


def test_explaining_a_mismatch() -> None:
    rng = np.random.default_rng(4)
    # smooth, as photographs are
    kept = np.clip(np.cumsum(rng.integers(-6, 7, (8, 32, 32, 3)), axis=2) + 128, 0, 255).astype(np.uint8)
    jitter = rng.integers(-2, 3, kept.shape)
    assert explain_mismatch(np.clip(kept + jitter, 0, 255).astype(np.uint8), kept) == "close"
    assert explain_mismatch(kept, kept) == "close"
    assert explain_mismatch(np.roll(kept, 1, axis=2), kept) == "other"
    assert explain_mismatch(kept[:, :, ::-1], kept) == "other"
    assert explain_mismatch(255 - kept, kept) == "other"
    assert explain_mismatch(kept[:, :16], kept) == "other"
    one = kept.copy()
    one[5] = one[5, :, ::-1]
    assert explain_mismatch(one, kept) == "other", "a single other picture among many is not another decoder"
