"""Shards and manifests of any content: a reader answers with one of softcache's errors, soon, and in little memory.

The child that reads them has 1 GiB beyond what its imports take and 5 seconds a case; checksums are made good again
in most cases, as a forger would do.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from harness_damage import files_of, run, small_cache


def _fuzz(folder: Path, cases: int, seed: int) -> None:
    small_cache(folder)
    before = {path: path.read_bytes() for path in files_of(folder)}
    verdicts = run("fuzz", folder, seed=seed, cases=cases, batch=2000)
    assert not [v for v in verdicts if v.split()[0] not in ("refused", "read")]
    assert len(verdicts) == cases
    refused = Counter(v.split()[3] for v in verdicts if v.startswith("refused"))
    assert set(refused) == {"_flip", "_truncate", "_swap", "_splice", "_noise", "_forge"}
    assert {path: path.read_bytes() for path in files_of(folder)} == before


def test_400_mutated_files_are_refused_or_read(tmp_path: Path) -> None:
    _fuzz(tmp_path / "cache", 400, seed=3)


@pytest.mark.torture
@pytest.mark.timeout(7200)
def test_20000_mutated_files_are_refused_or_read(tmp_path: Path) -> None:
    _fuzz(tmp_path / "cache", 20_000, seed=4)
