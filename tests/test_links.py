"""A cache or run from a stranger, whose names lead elsewhere: nothing outside of the folder is written or removed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from harness_cache import make_cache
from harness_dump import shards
from harness_train import command, fit, lines, make_teacher
from harness_train import make_cache as make_digits_cache

from softcache.cache.locks import MANIFEST_LOCK, changing
from softcache.cache.reader import Cache
from softcache.config.record import read_record
from softcache.errors import CacheError, SoftcacheError
from softcache.stages.verify import verify

SECRET = b"a file that whoever opens the cache may write\n"
SHARE = ".writing-1of1.lock"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, a cache of one view, and a run."""
    folder = tmp_path_factory.mktemp("links")
    make_teacher(folder / "teacher")
    make_digits_cache(folder / "cache", folder / "teacher", views=1)
    # a run that names no path and no code, so that it may be anywhere
    train = ("train", "--student", "cifar:resnet8", "--alpha", "0", "--dataset", "digits", "--epochs", "1")
    assert command(*train, "--log-every", "1", "--device", "cpu", "--out", folder / "run") == 0
    return folder


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_bytes(SECRET)
    return path


def lead(name: Path, kind: str, victim: Path) -> Path:
    """Makes ``name`` lead to the victim, to a file that isn't there yet, or be a pipe or a folder."""
    name.unlink(missing_ok=True)
    if kind == "link":
        name.symlink_to(victim)
    elif kind == "link to nothing":
        name.symlink_to(victim.with_name("created"))
    elif kind == "hard link":
        os.link(victim, name)
    elif kind == "pipe":
        os.mkfifo(name)
    else:
        name.mkdir()
    return name


def untouched(victim: Path) -> None:
    assert victim.read_bytes() == SECRET
    assert not victim.with_name("created").exists()


def one_error(capfd: pytest.CaptureFixture[str]) -> str:
    found = [line for line in capfd.readouterr().err.splitlines() if line.startswith("softcache: ")]
    assert len(found) == 1, found
    return found[0]


KINDS = ("link", "link to nothing", "hard link", "pipe", "folder")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.timeout(60)
def test_repair_names_a_lock_that_is_no_lock(kind, victim, tmp_path, capfd):
    cache, _ = make_cache(tmp_path / "cache", rows=10)
    name = lead(cache.folder / SHARE, kind, victim)
    before = shards(cache.folder)
    assert command("verify", cache.folder, "--repair") == 1
    assert str(name) in one_error(capfd)
    untouched(victim)
    assert shards(cache.folder) == before


@pytest.mark.parametrize("name", [SHARE, ".writing-2of4.lock", MANIFEST_LOCK])
@pytest.mark.parametrize("kind", ["link", "link to nothing", "hard link", "folder"])
@pytest.mark.timeout(60)
def test_dump_names_a_lock_that_is_no_lock(made, name, kind, victim, tmp_path, capfd):
    """Its own share's, another division's, the manifest's."""
    shutil.copytree(made / "cache", tmp_path / "cache")
    lead(tmp_path / "cache" / name, kind, victim)
    assert command("dump", "--teacher", made / "teacher", "--out", tmp_path / "cache", "--views", "2") == 1
    assert str(tmp_path / "cache" / name) in one_error(capfd)
    untouched(victim)


@pytest.mark.parametrize("name", ["metrics.jsonl", "steps.jsonl", "checkpoint.pt", ".lock"])
@pytest.mark.parametrize("kind", ["link", "link to nothing", "folder"])
@pytest.mark.timeout(60)
def test_resume_names_a_file_that_leads_elsewhere(made, name, kind, victim, tmp_path, capfd):
    shutil.copytree(made / "run", tmp_path / "run")
    lead(tmp_path / "run" / name, kind, victim)
    options = read_record(made / "run").options  # a copy is another folder, whose paths and code are given anew
    allowed = [word for spec in (options.student, *options.cache) for word in ("--allow", spec)]
    assert command(*allowed, "train", "--resume", tmp_path / "run") == 1
    assert str(tmp_path / "run" / name) in one_error(capfd)
    untouched(victim)


def test_a_profile_replaces_a_link_and_writes_nothing_through_it(made, victim, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "trace.json").symlink_to(victim)
    fit(run, cache=(str(made / "cache"),), epochs=1, profile=True)
    untouched(victim)
    assert not (run / "trace.json").is_symlink()
    assert (run / "trace.json").stat().st_size > len(SECRET)
    assert len(lines(run)) == 1


@pytest.mark.timeout(60)
def test_the_manifest_lock_refuses_a_link_and_leaves_it(victim, tmp_path):
    link = lead(tmp_path / MANIFEST_LOCK, "link", victim)
    with pytest.raises(SoftcacheError, match=r"cache\.json\.lock is a link"), changing(tmp_path):
        pytest.fail("the lock was given out")
    assert link.is_symlink()
    untouched(victim)


def linked_view(folder: Path, other: Path, view: int = 0) -> Path:
    """``folder``'s view becomes a link to the same view of another cache."""
    place = folder / f"view-{view:04d}"
    shutil.rmtree(place, ignore_errors=True)
    place.symlink_to(other / f"view-{view:04d}")
    return place


def test_repair_of_a_view_that_is_another_caches_removes_the_link_alone(tmp_path):
    other, _ = make_cache(tmp_path / "other", rows=40, shard_rows=16, classes=7)
    cache, _ = make_cache(tmp_path / "cache", rows=40, shard_rows=16)
    leftover = other.folder / "view-0000" / ".logits-00000.h5~host.0~00000000.1~1~00.part"
    leftover.write_bytes(b"of another writer")
    before = {path: path.read_bytes() for path in sorted((other.folder).rglob("*")) if path.is_file()}
    link = linked_view(cache.folder, other.folder)
    found = verify(cache.folder, repair=True)
    assert found.removed == ["view-0000"]
    assert {path: path.read_bytes() for path in sorted((other.folder).rglob("*")) if path.is_file()} == before
    assert not os.path.lexists(link)
    again = verify(cache.folder)
    assert not again.damaged
    assert len(again.missing) == cache.manifest.shards("logits")


def test_dump_writes_into_no_folder_that_is_a_link(made, tmp_path, capfd):
    other, _ = make_cache(tmp_path / "other", rows=10)
    before = sorted(other.folder.rglob("*"))
    folder = tmp_path / "cache"
    shutil.copytree(made / "cache", folder)
    (folder / "view-0001").symlink_to(other.folder / "view-0001")  # without the shard that the dump has to make
    (other.folder / "view-0001" / "logits-00000.h5").unlink()
    before.remove(other.folder / "view-0001" / "logits-00000.h5")
    assert command("dump", "--teacher", made / "teacher", "--out", folder, "--views", "2") == 1
    assert f"{folder / 'view-0001'} is a link" in one_error(capfd)
    assert sorted(other.folder.rglob("*")) == before


def test_a_view_behind_a_link_is_still_read(tmp_path):
    """Large stores are made like this, and reading harms nobody."""
    cache, expected = make_cache(tmp_path / "cache", rows=40, shard_rows=16)
    store = tmp_path / "store"
    (cache.folder / "view-0000").rename(store)
    (cache.folder / "view-0000").symlink_to(store)
    reader = Cache(cache.folder, verify_reads=True).column("logits")
    rows = np.arange(40)
    np.testing.assert_array_equal(reader.decode(reader.gather(0, rows)).numpy(), expected[0])
    assert verify(cache.folder).ok


def test_repair_says_which_file_it_can_not_remove(tmp_path):
    cache, _ = make_cache(tmp_path / "cache", rows=10)
    shard = cache.shard_path(0, "logits", 0)
    shard.unlink()
    shard.mkdir()
    with pytest.raises(CacheError, match=r"logits-00000\.h5 is damaged and can't be removed"):
        verify(cache.folder, repair=True)
