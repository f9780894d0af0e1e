"""Bits are flipped one by one anywhere in a cache: verify finds each, and no reader takes other numbers for true."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from harness_damage import files_of, flip_cases, run, small_cache, small_compressed, small_ragged

CACHES = pytest.mark.parametrize("make", [small_cache, small_ragged, small_compressed])


def _flip(make: Callable[[Path], object], folder: Path, cases: int, seed: int) -> None:
    make(folder)
    before = {path: path.read_bytes() for path in files_of(folder)}
    verdicts = run("flips", folder, seed=seed, cases=cases)
    wrong = [v for v in verdicts if v.split()[:2] not in (["found", "same"], ["found", "refused"])]
    assert not wrong, wrong[:5]
    assert len(verdicts) == cases
    # The tool hits what it should: arrays and structure that a reader refuses, and padding that it doesn't read.
    assert min(Counter(v.split()[1] for v in verdicts).values()) > cases / 10
    assert {path: path.read_bytes() for path in files_of(folder)} == before


@CACHES
def test_every_flipped_bit_is_found(make: Callable[[Path], object], tmp_path: Path) -> None:
    _flip(make, tmp_path / "cache", 150, seed=11)


@pytest.mark.torture
@pytest.mark.timeout(7200)
@CACHES
def test_every_one_of_2000_flipped_bits_is_found(make: Callable[[Path], object], tmp_path: Path) -> None:
    _flip(make, tmp_path / "cache", 2000, seed=12)


@CACHES
def test_flips_reach_every_file(make: Callable[[Path], object], tmp_path: Path) -> None:
    make(tmp_path / "cache")
    cases = flip_cases(tmp_path / "cache", 0)
    hit = {next(cases)[0] for _ in range(500)}
    assert hit == set(files_of(tmp_path / "cache"))


@pytest.mark.skipif(sys.platform != "linux", reason="signals and limits as Linux has them")
def test_a_child_that_dies_is_reported_not_lost(tmp_path: Path) -> None:
    verdicts = run("flips", tmp_path / "absent", seed=0, cases=5)
    assert len(verdicts) == 1
    assert verdicts[0].startswith("died with 1 in case 0")
