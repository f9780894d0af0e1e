"""The one rule for how much two computations of the same logits may differ, against real roundings."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from harness_cache import make_cache
from harness_train import command

from softcache.cache.agreement.tolerance import RELATIVE_ERROR, compare_values, relative_error
from softcache.cache.manifest import Manifest
from softcache.cache.reader import Cache

EXACT = {"dtype": "float32", "amp": "off", "tf32": False}


def cache_of(folder: Path, codec: str, **numerics: object) -> Cache:
    cache = make_cache(folder, rows=8, codec=codec, written=False)[0]
    teacher = cache.manifest.identity.teacher
    teacher = dataclasses.replace(teacher, numerics=dataclasses.replace(teacher.numerics, **{**EXACT, **numerics}))
    cache.manifest = Manifest(dataclasses.replace(cache.manifest.identity, teacher=teacher), cache.manifest.state)
    return cache


@pytest.mark.parametrize(
    ("numerics", "expected"),
    [
        ({}, 1e-4),
        ({"dtype": "float64"}, 1e-9),
        ({"tf32": True}, 1e-2),
        ({"amp": "fp16"}, 1e-2),
        ({"amp": "bf16", "tf32": True}, 5e-2),
    ],
)
def test_autocast_counts_before_tf32_and_both_before_the_dtype(numerics: dict, expected: float, tmp_path: Path) -> None:
    assert relative_error(cache_of(tmp_path / "cache", "fp32", **numerics)) == expected


@pytest.mark.parametrize("codec", ["fp16", "fp32"])
@pytest.mark.parametrize("scale", [0.01, 1.0, 300.0])
def test_what_arithmetic_and_codec_do_is_within_the_bound_and_ten_times_that_is_not(
    codec: str, scale: float, tmp_path: Path
) -> None:
    cache, rng = cache_of(tmp_path / "cache", codec), np.random.default_rng(0)
    now = torch.from_numpy(rng.standard_normal((4096, 10)) * scale)
    off = torch.from_numpy(rng.uniform(-1, 1, now.shape)) * RELATIVE_ERROR["float32"] * now.abs().amax(1, keepdim=True)
    logits = cache.layout("logits")
    stored = logits.decode(logits.encode((now + off).float()))
    differs, allowed = compare_values(cache, "logits", stored, now)
    assert bool((differs <= allowed).all())
    # fp16 keeps 11 bits: a logit of size m is off by at most m · 2**-11
    largest = now.abs().amax(1)
    assert bool((allowed <= largest * (4e-4 + (2**-11 if codec == "fp16" else 2**-24)) * (1 + 1e-6) + 1e-8).all())
    wrong = stored.double()
    wrong[:, 3] += 10 * allowed
    assert bool((compare_values(cache, "logits", wrong, now)[0] > allowed).all())


@pytest.mark.parametrize("codec", ["int:bits=4", "int:bits=8", "topk:k=3", "topk:k=9"])
def test_levels_and_leaders_that_fall_otherwise_are_within_the_bound(codec: str, tmp_path: Path) -> None:
    """Last bits decide which level or leader is the nearest of two."""
    cache, rng = cache_of(tmp_path / "cache", codec), np.random.default_rng(0)
    logits = cache.layout("logits")
    for scale, shift in ((1.0, 0.0), (300.0, 20.0), (1e-3, 5.0)):
        now = torch.from_numpy(rng.standard_normal((4096, 10)) * scale + shift)
        for share in (1e-6, 0.5):
            most = share * RELATIVE_ERROR["float32"] * now.abs().amax(1, keepdim=True)
            off = torch.from_numpy(rng.uniform(-1, 1, now.shape)) * most
            stored = logits.decode(logits.encode((now + off).float()))
            differs, allowed = compare_values(cache, "logits", stored, now)
            assert bool((differs <= allowed).all())
    wrong = stored.double()
    wrong[:, 3] += 10 * allowed
    assert bool((compare_values(cache, "logits", wrong, now)[0] > allowed).all())


def test_logits_that_are_no_numbers_or_all_zero(tmp_path: Path) -> None:
    cache = cache_of(tmp_path / "cache", "fp32")
    zero = torch.zeros(2, 10)
    differs, allowed = compare_values(cache, "logits", zero, zero)
    assert differs.tolist() == [0, 0]
    assert bool((allowed > 0).all())
    broken = zero.clone()
    broken[1, 4] = torch.nan
    differs, allowed = compare_values(cache, "logits", broken, zero)
    assert (differs <= allowed).tolist() == [True, False]


def test_a_dump_that_goes_on_finds_one_key_among_many_that_is_off_by_half_a_percent(
    here: Path, small_teacher: Callable[..., str], colour_arrays: str, capsys: pytest.CaptureFixture
) -> None:
    teacher = small_teacher("teacher", dataset=colour_arrays)
    dump = (
        *("dump", "--teacher", teacher, "--dataset", colour_arrays, "--out", "cache", "--views", "1"),
        *("--codec", "fp32", "--amp", "off", "--batch-size", "64", "--device", "cpu"),
    )
    assert command(*dump) == 0
    with h5py.File(here / "cache/view-0000/logits-00000.h5", "r+", libver=("v110", "v110"), track_times=None) as file:
        values = file["values"]
        changed = values[...]
        changed[9, 2] += 0.005 * np.abs(changed[9]).max()
        values[...] = changed
        values.attrs.modify("crc32", np.uint32(zlib.crc32(changed.tobytes())))
    capsys.readouterr()
    assert command(*dump, "--hint", "layer1") == 1
    assert "(row 9 in view 0: logits are off by" in (said := capsys.readouterr().err)
    assert "so are 1 of 64 keys of this batch" in said
