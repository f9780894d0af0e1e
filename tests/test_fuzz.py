"""Shards and manifests of any content: a reader answers with one of softcache's errors, soon, and in little memory.

The child that reads them has 1 GiB beyond what its imports take and 5 seconds a case; checksums are made good again
in most cases, as a forger would do.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from harness_damage import files_of, forged_values, run, small_cache, small_compressed, small_ragged

from softcache.config.record import read_record
from softcache.errors import SoftcacheError
from softcache.models._folder import read_folder
from softcache.stages.teach import teach

CACHES = pytest.mark.parametrize("make", [small_cache, small_ragged, small_compressed])


def _fuzz(make: Callable[[Path], object], folder: Path, cases: int, seed: int) -> None:
    make(folder)
    before = {path: path.read_bytes() for path in files_of(folder)}
    verdicts = run("fuzz", folder, seed=seed, cases=cases, batch=2000)
    assert not [v for v in verdicts if v.split()[0] not in ("refused", "read")]
    assert len(verdicts) == cases
    refused = Counter(v.split()[3] for v in verdicts if v.startswith("refused"))
    assert set(refused) == {"_flip", "_truncate", "_swap", "_splice", "_noise", "_forge"}
    assert {path: path.read_bytes() for path in files_of(folder)} == before


@CACHES
def test_200_mutated_files_are_refused_or_read(make: Callable[[Path], object], tmp_path: Path) -> None:
    _fuzz(make, tmp_path / "cache", 200, seed=3)


@pytest.mark.torture
@pytest.mark.timeout(7200)
@CACHES
def test_20000_mutated_files_are_refused_or_read(make: Callable[[Path], object], tmp_path: Path) -> None:
    _fuzz(make, tmp_path / "cache", 20_000, seed=4)


def test_400_mutated_configurations_are_refused_or_read(here: Path) -> None:
    """``config.json`` of a teacher's folder: other bytes, other values, huge numbers, and nesting of any depth."""
    teach("cifar:resnet8", size=8, epochs=1, workers=0, out="teacher")
    path = here / "teacher" / "config.json"
    original, verdicts = path.read_bytes(), Counter()
    for number in range(400):
        path.write_bytes(_mutated(random.Random(number), original))
        for reader in (read_record, read_folder):
            try:
                reader(path.parent)
                verdicts["read"] += 1
            except SoftcacheError as error:
                verdicts["refused" if len(str(error).splitlines()) == 1 else f"several lines: {error}"] += 1
    assert set(verdicts) == {"read", "refused"}
    assert verdicts["refused"] > 200
    path.write_bytes(original)
    assert read_record(path.parent).command == "teach"


def _mutated(rng: random.Random, original: bytes) -> bytes:
    if rng.random() < 0.3:
        changed = bytearray(original)
        for _ in range(rng.choice([1, 8, 64])):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        return bytes(changed[: rng.randrange(len(changed)) if rng.random() < 0.3 else None])
    document = json.loads(original)
    for _ in range(rng.choice([1, 1, 2, 5])):
        forged_values(rng, document)
    text = json.dumps(document)
    if rng.random() < 0.3:
        opening, closing = rng.choice([("[", "]"), ('{"a":', "}")])
        depth = rng.choice([50, 90, 200, 900, 1000, 100_000])
        text = text.replace('"versions": {', f'"versions": {{"a": {opening * depth}1{closing * depth}, ', 1)
    return text.encode("utf-8", "surrogatepass")
