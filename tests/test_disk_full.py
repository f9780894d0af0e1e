"""A disk that fills up leaves every finished shard valid, one clear error, and a dump that can be resumed."""

from __future__ import annotations

import shutil

import pytest
from harness_dump import Setting, Warm, shards, temporaries

from softcache.cache.column import Column
from softcache.cache.reader import Cache
from softcache.cache.schema import ColumnRecord, Identity
from softcache.codecs._open import open_codec
from softcache.dumping.estimate import Estimate, estimate, refuse_too_large
from softcache.errors import CacheError

KIB = 1024


@pytest.fixture(scope="module")
def undisturbed(setting: Setting, warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("undisturbed") / "cache"
    assert warm.run(setting.command(folder)).status == 0
    return shards(folder)


# As where the estimate can't know it: quotas, other writers, a file system that compresses or counts otherwise.
NOT_FORESEEN = """
import softcache.stages.dump
softcache.stages.dump.refuse_too_large = lambda *_: None
"""

# Writes beyond the limit fail with EFBIG; Python ignores the signal that comes with it.
SMALL_FILES = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
"""


ROOMS = (16, 80, 400, 1000)


@pytest.mark.parametrize(
    "room",
    [k if k in ROOMS else pytest.param(k, marks=pytest.mark.torture) for k in sorted({*ROOMS, *range(8, 1000, 36)})],
)
def test_a_full_disk(setting, warm, undisturbed, small_disk, room):
    """Full while the rows are written, the samples, the manifest, an early shard, a late one."""
    disk, resize = small_disk
    resize(room * KIB)
    folder = disk / "cache"
    ended = warm.run(setting.command(folder), prepare=NOT_FORESEEN)
    assert ended.status == 1, ended.output
    errors = [line for line in ended.output.splitlines() if line.startswith("softcache:")]
    assert len(errors) == 1
    assert f"disk full at {folder} (ENOSPC, no space left)" in errors[0]
    assert "free space and run the same command again" in errors[0]
    assert "Traceback" not in ended.output
    assert temporaries(disk) == []
    finished = {name: sha for name, sha in shards(folder).items() if name.startswith("view")}
    assert all(undisturbed[name] == sha for name, sha in finished.items())
    if room >= 400:
        assert finished
        assert "keys are in" in errors[0]
    resize(64 * 2**20)
    again = warm.run(setting.command(folder))
    assert again.status == 0, again.output
    assert shards(folder) == undisturbed
    assert temporaries(folder) == []


@pytest.mark.parametrize("limit", [2 * KIB, 20 * KIB, 22 * KIB])
def test_a_limit_on_the_size_of_files(setting, warm, undisturbed, tmp_path, limit):
    folder = tmp_path / "cache"
    ended = warm.run(setting.command(folder), prepare=SMALL_FILES.format(limit=limit))
    assert ended.status == 1, ended.output
    assert f"disk full at {folder} (EFBIG, file size limit)" in ended.output
    assert "Traceback" not in ended.output
    assert temporaries(folder) == []
    again = warm.run(setting.command(folder))
    assert again.status == 0, again.output
    assert shards(folder) == undisturbed


@pytest.fixture(scope="module")
def train(setting: Setting) -> list[str]:
    """All of a training but its folder: a checkpoint of it takes some 900 KiB, its student 300."""
    return [
        *("train", "--student", "cifar:resnet8", "--alpha", "0", "--val-fraction", "0.1", "--log-every", "1"),
        *("--dataset", f"arrays:{setting.root / 'data.npz'}", "--device", "cpu", "--workers", "0", "--epochs", "3"),
        *("--batch-size", "100", "--optimizer", "adamw", "--lr", "0.002"),
    ]


@pytest.fixture(scope="module")
def trained(warm: Warm, train: list[str], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("trained") / "run"
    ended = warm.run([*train, "--out", str(folder)])
    assert ended.status == 0, ended.output
    return (folder / "student.safetensors").read_bytes()


@pytest.mark.parametrize("room", [12, 900, 2000, *(pytest.param(k, marks=pytest.mark.torture) for k in (4, 400, 1500))])
def test_a_training_on_a_full_disk_goes_on_from_its_last_checkpoint(warm, train, trained, small_disk, room):
    """Full before anything, before the best student, the first checkpoint, the second beside the first, the end."""
    disk, resize = small_disk
    resize(room * KIB)
    folder = disk / "run"
    command = [*train, "--out", str(folder)]
    ended = warm.run(command)
    assert ended.status == 1, ended.output
    errors = [line for line in ended.output.splitlines() if line.startswith("softcache:")]
    assert len(errors) == 1, ended.output
    assert f"disk full at {folder} (ENOSPC, no space left)" in errors[0]
    assert "Traceback" not in ended.output
    assert temporaries(disk) == []
    assert not (folder / "student.safetensors").exists()
    begun = (folder / "config.json").exists()
    assert ("the last checkpoint is whole" in errors[0]) == (folder / "checkpoint.pt").exists() == (room >= 1500)
    resume = f"softcache train --resume {folder}"
    assert errors[0].endswith(f"free space and go on with {resume}" if begun else "run the same command again")
    resize(64 * 2**20)
    again = warm.run(["train", "--resume", str(folder)] if begun else command)
    assert again.status == 0, again.output
    assert ("resuming after epoch" in again.output) == (room >= 1500)
    assert (folder / "student.safetensors").read_bytes() == trained


def test_repair_on_a_file_system_that_is_read_only_is_one_line(setting, warm, small_disk):
    disk, resize = small_disk
    folder = disk / "cache"
    assert warm.run(setting.command(folder)).status == 0
    shard = folder / "view-0000" / "logits-00000.h5"
    shard.write_bytes(b"damaged")
    resize(64 * 2**20, 33)  # MS_REMOUNT | MS_RDONLY
    ended = warm.run(["verify", str(folder), "--repair"])
    assert ended.status == 1
    assert f"softcache: can't write to {folder}: Read-only file system" in ended.output
    assert "Traceback" not in ended.output
    found = warm.run(["verify", str(folder)])
    assert found.status == 1
    assert "damaged  view-0000/logits-00000.h5" in found.output


def test_a_dump_that_can_not_fit_stops_before_it_starts(setting, warm, small_disk):
    disk, resize = small_disk
    resize(400 * KIB)
    ended = warm.run(setting.command(disk / "cache"))
    assert ended.status == 1
    assert "needs 1." in ended.output
    assert "free: fewer --views or hints, a smaller --codec, or another --out" in ended.output
    assert list(disk.iterdir()) == []


def test_the_estimate_is_what_a_dump_then_takes(setting, warm, undisturbed, tmp_path):
    """To the byte: what is refused would really not fit."""
    folder = tmp_path / "cache"
    assert warm.run(setting.command(folder)).status == 0
    cache = Cache(folder)
    written = sum(path.stat().st_size for path in folder.glob("view-*/*.h5"))
    identity, columns = cache.manifest.identity, [cache.layout(name) for name in cache.manifest.columns]
    fresh = estimate(identity, columns, 3, tmp_path / "none" / "yet", None, {})
    assert fresh.needed == fresh.total == written
    assert (fresh.keys, fresh.missing, fresh.existing) == (900, 900, 0)
    whole = estimate(identity, columns, 3, folder, cache, {})
    assert (whole.needed, whole.missing) == (0, 0)
    more = estimate(identity, columns, 4, folder, cache, {})
    assert more.missing == 300
    assert more.needed == fresh.needed // 3  # views are of one size


def test_the_estimate_counts_the_whole_blocks_of_a_new_hint(tmp_path):
    """A new hint needs the teacher for every key, but only the hint's own bytes."""
    from harness_cache import make_cache

    cache, _ = make_cache(tmp_path / "cache", rows=100, shard_rows=64, views=2)
    hint = Column.of("hint.layer", ColumnRecord("values", [5, 3], "fp16", 64), open_codec("fp16"))
    columns = [cache.layout("logits"), hint]
    identity: Identity = cache.manifest.identity
    found = estimate(identity, columns, 2, cache.folder, cache, {})
    assert found.missing == 200
    assert found.bytes_per_key["hint.layer"] == 5 * 3 * 2 + 4
    assert 200 * 34 < found.needed < 200 * 34 + 4 * 6 * 4096  # each shard's file is described in a few pages
    with pytest.raises(CacheError, match=r"needs .* more and there are 9 bytes free"):
        refuse_too_large(Estimate(1, 1, {}, 10, 0, 10, 9), tmp_path)
    assert shutil.disk_usage(tmp_path).free == pytest.approx(found.free, rel=0.2)
