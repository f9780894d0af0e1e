"""Commands over compressed columns: dumps write them, trainings read the same bits, kills and repairs lose nothing."""

from __future__ import annotations

import random
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness_dump import Setting, Warm, remove_unsigned_locks, shards, temporaries
from harness_train import command
from safetensors.torch import load_file

from softcache.cache.reader import Cache
from softcache.errors import CacheError, MissingExtraError, UsageError
from softcache.extras import install_command
from softcache.stages.dump import dump
from softcache.stages.plan import plan
from softcache.stages.train import train
from softcache.stages.trim import trim
from softcache.stages.verify import verify

pytest.importorskip("zstandard")

KILLS = [1, pytest.param(100, id="100", marks=pytest.mark.torture)]
COMPRESS = ("--hint", "body.0", "--compress", "zstd", "--compress", "hint.body.0=zstd:level=3,rows=16")


def numbers(folder: Path) -> dict[str, np.ndarray]:
    """All that a cache keeps, by view, column and array."""
    cache = Cache(folder, verify_reads=True)
    return {
        f"{view}/{column}/{name}": array
        for view in range(cache.views)
        for column in cache.manifest.columns
        for name, array in cache.column(column).gather(view, np.arange(cache.rows)).items()
    }


def equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(array.tobytes() == other[name].tobytes() for name, array in one.items())


def test_a_dump_compresses_as_it_is_asked_to_and_the_numbers_are_the_same(
    here: Path, small_teacher: Any, colour_arrays: str
) -> None:
    teacher = small_teacher("teacher", dataset=colour_arrays)
    options: dict[str, Any] = {
        "views": 2,
        "workers": 0,
        "shard_rows": 64,
        "dataset": colour_arrays,
        "hint": ("layer1", "layer3:codec=int:bits=5"),
    }
    plain = dump(teacher, out="plain", **options)
    asked = ("zstd", "hint.layer3=none", "logits=zstd:level=3,shuffle=none")
    kept = dump(teacher, out="kept", compress=asked, **options)
    records = Cache(kept.folder).manifest.state.columns
    assert records["hint.layer3"].compress is None
    assert records["logits"].compress is not None
    assert records["logits"].compress.startswith("zstd:level=3,")
    assert records["logits"].compress.endswith("shuffle=none")
    assert records["hint.layer1"].compress is not None
    assert equal(numbers(plain.folder), numbers(kept.folder))
    assert verify(kept.folder).ok
    assert kept.info["bytes"] < plain.info["bytes"]
    assert dump(teacher, out="kept", compress=asked, **options).keys == 0
    assert dump(teacher, out="kept", **options).keys == 0  # as the cache has it
    for other in (("none",), ("zstd:level=4",), ("hint.layer3=zstd",)):
        with pytest.raises(CacheError, match="leave --compress out or use another --out"):
            dump(teacher, out="kept", compress=other, **options)
    del options["workers"]
    planned = plan(teacher, compress=asked, **options)
    by_file = {p.relative_to(kept.folder): p.stat().st_size for p in kept.folder.rglob("*") if p.is_file()}
    assert planned.files.files == len(by_file)
    assert planned.files.bytes >= sum(size for path, size in by_file.items() if path.name != "cache.json")
    assert [column.compress for column in planned.columns] == [records[c.name].compress for c in planned.columns]


def test_a_column_is_added_and_taken_away_beside_others(here: Path, small_teacher: Any) -> None:
    teacher = small_teacher("teacher")
    options: dict[str, Any] = {"views": 1, "workers": 0, "out": "cache"}
    dump(teacher, **options)
    before = numbers(Path("cache"))
    assert dump(
        teacher, hint=("layer3",), compress=("hint.layer3=zstd",), **options
    ).keys  # logits are there: they stay as they are
    records = Cache("cache").manifest.state.columns
    assert records["logits"].compress is None
    assert records["hint.layer3"].compress is not None
    assert {name: array for name, array in numbers(Path("cache")).items() if "logits" in name}.keys() == before.keys()
    assert verify(Path("cache")).ok
    trim("cache", drop_hints=["layer3"])
    assert equal(numbers(Path("cache")), before)
    assert verify(Path("cache")).ok


def test_names_and_specs_that_cannot_be_are_refused(here: Path, small_teacher: Any) -> None:
    teacher = small_teacher("teacher")
    for compress, message in (
        (("gzip",), "unknown"),
        (("layer3=zstd",), "no such column: did you mean"),
        (("zstd", "zstd:level=2"), "says twice"),
        (("logits=zstd:rows=1",), "too small"),
    ):
        with pytest.raises(UsageError, match=message):
            dump(teacher, hint=("layer3",), compress=compress, views=1, workers=0, out="cache")
        assert not Path("cache", "cache.json").exists()


def test_a_training_from_a_compressed_cache_gives_the_same_bits(
    here: Path, small_teacher: Any, colour_arrays: str
) -> None:
    teacher = small_teacher("teacher", dataset=colour_arrays)
    for name, compress in (("plain", ()), ("kept", ("zstd",))):
        dump(teacher, dataset=colour_arrays, out=f"caches/{name}", views=2, workers=0, compress=compress)

    def weights(cache: str, **how: str) -> dict[str, torch.Tensor]:
        out = f"runs/{cache}-{'-'.join(how.values())}"
        done = train(cache=(f"caches/{cache}",), student="cifar:resnet8", epochs=2, out=out, workers=0, **how)
        return load_file(next(done.folder.glob("*.safetensors")))

    for how in ({}, {"resident": "off"}, {"resident": "off", "shuffle": "block"}):
        plain, kept = weights("plain", **how), weights("kept", **how)
        assert plain.keys() == kept.keys()
        assert all(torch.equal(tensor, kept[name]) for name, tensor in plain.items())


def test_a_damaged_shard_is_repaired_to_the_same_bytes(here: Path, small_teacher: Any) -> None:
    teacher = small_teacher("teacher")
    dump(teacher, out="cache", views=1, workers=0, compress=("zstd",), shard_rows=512)
    before = shards(Path("cache"))
    path = Path("cache/view-0000/logits-00001.h5")
    data = bytearray(path.read_bytes())
    with Cache("cache").shard(0, "logits", 1) as file:
        data[int(file.compressed["values"].chunks.offset[0]) + 30] ^= 1
    path.write_bytes(data)
    assert command("verify", "cache") == 1
    assert command("verify", "cache", "--repair") == 1
    assert not path.exists()
    dump(teacher, out="cache", views=1, workers=0)
    assert shards(Path("cache")) == before
    assert verify(Path("cache")).ok


def test_a_dump_without_the_package_is_refused_before_the_teacher_runs(
    here: Path, small_teacher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = small_teacher("teacher")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(MissingExtraError, match=re.escape(install_command("compress"))):
        dump(teacher, compress=("zstd",), views=1, workers=0, out="cache")
    assert not Path("cache").exists()
    assert plan(teacher, compress=("zstd",), views=1).columns[0].compress is not None
    assert dump(teacher, compress=("none",), views=1, workers=0, out="cache").keys


def test_info_says_how_columns_are_compressed(here: Path, small_teacher: Any, capsys: pytest.CaptureFixture) -> None:
    assert (
        command("dump", "--teacher", small_teacher("teacher"), "--views", "1", "--compress", "zstd", "--out", "cache")
        == 0
    )
    assert command("info", "cache") == 0
    assert "fp16, zstd:level=1,rows=" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("kills", KILLS)
@pytest.mark.timeout(900)
def test_bytes_are_the_same_however_often_a_compressed_dump_is_killed(
    setting: Setting, warm: Warm, tmp_path: Path, kills: int
) -> None:
    whole = tmp_path / "whole"
    assert warm.run(setting.command(whole, *COMPRESS)).status == 0
    expected = shards(whole)
    assert {record.compress is None for record in Cache(whole).manifest.state.columns.values()} == {False}
    with Cache(whole).shard(0, "hint.body.0", 0) as file:
        assert len(file.compressed["values"].chunks.offset) == 4
    rng, died, seconds = random.Random(5), 0, 1.0
    while died < kills:
        folder = tmp_path / "cache"
        shutil.rmtree(folder, ignore_errors=True)
        while True:
            ended = warm.run(setting.command(folder, *COMPRESS), kill_after=rng.uniform(0, seconds))
            remove_unsigned_locks(folder)
            assert ended.status in (0, -9), ended.output
            assert all(expected[name] == sha for name, sha in shards(folder).items() if name.startswith("view"))
            if ended.status == 0:
                break
            died, seconds = died + 1, 1.2 * seconds  # so that it ends on a slow machine too
        seconds = 1.0
        assert shards(folder) == expected
        assert temporaries(folder) == []
