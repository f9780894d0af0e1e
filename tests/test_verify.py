"""``softcache verify``: what it reports, what it removes, and that the same dump then computes just that again."""

from __future__ import annotations

import json
import os
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import harness_process
import numpy as np
import pytest
from harness_damage import files_of, small_cache

from softcache.atomic import temporary_path
from softcache.cache.locks import writing
from softcache.cache.reader import Cache
from softcache.cli._main import run
from softcache.errors import CacheError, IntegrityError, LockedError
from softcache.stages.dump import dump
from softcache.stages.verify import verify


def _flip(path: Path, at: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))


def _offset(path: Path, name: str) -> int:
    with h5py.File(path) as file:
        return int(file[name].id.get_offset())


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return small_cache(tmp_path / "cache")


@pytest.fixture
def dumped(here: Path, small_teacher: Callable[..., str], colour_arrays: str) -> Callable[[], Path]:
    """A real dump into ``cache``, made or completed."""
    teacher = small_teacher("teacher", dataset=colour_arrays)

    def again() -> Path:
        return dump(
            teacher,
            dataset=colour_arrays,
            out="cache",
            views=2,
            shard_rows=64,
            batch_size=64,
            amp="off",
            hint=("layer1",),
        ).folder

    again()
    return again


def test_a_sound_cache_and_every_byte_of_it_is_read(cache: Cache) -> None:
    found = verify(cache.folder)
    assert found.ok
    assert [found.damaged, found.missing, found.foreign, found.parts] == [[], [], [], []]
    assert found.files == len(files_of(cache.folder)) == 12
    assert found.bytes == sum(path.stat().st_size for path in files_of(cache.folder))


def test_what_is_damaged_is_named_with_its_rows(cache: Cache) -> None:
    logits, hint = cache.shard_path(1, "logits", 1), cache.shard_path(0, "hint.layer3", 0)
    _flip(logits, _offset(logits, "values") + 5)
    _flip(hint, _offset(hint, "digest"))
    _flip(cache.folder / "rows.h5", _offset(cache.folder / "rows.h5", "label"))
    _flip(cache.folder / "samples.h5", 4100)  # its root group
    damaged = {d.file: d for d in verify(cache.folder).damaged}
    assert set(damaged) == {"view-0001/logits-00001.h5", "view-0000/hint.layer3-00000.h5", "rows.h5", "samples.h5"}
    found = damaged["view-0001/logits-00001.h5"]
    assert (found.array, found.view, found.first_row, found.rows) == ("values", 1, 16, 4)
    assert str(found) == "view-0001/logits-00001.h5 values (view 1, rows 16 to 19) doesn't match its checksum"
    assert damaged["view-0000/hint.layer3-00000.h5"].array == "digest"
    assert damaged["rows.h5"].array == "label"
    assert damaged["samples.h5"].array is None


def test_both_arrays_of_a_file_are_reported(cache: Cache) -> None:
    path = cache.shard_path(0, "logits", 0)
    for name in ("digest", "values"):
        _flip(path, _offset(path, name))
    assert [d.array for d in verify(cache.folder).damaged] == ["digest", "values"]


def test_padding_belongs_to_what_is_checked(cache: Cache) -> None:
    path = cache.shard_path(0, "logits", 0)
    _flip(path, _offset(path, "digest") - 1)
    assert "belong to nothing" in verify(cache.folder).damaged[0].what


def test_missing_foreign_and_leftover_files(cache: Cache) -> None:
    gone = cache.shard_path(1, "hint.layer3", 0)
    leftover = temporary_path(cache.shard_path(0, "logits", 0))
    gone.unlink()
    leftover.write_bytes(b"half a shard")
    for name in ("notes.txt", "view-0000/logits-00007.h5", "view-0009/logits-00000.h5"):
        (cache.folder / name).parent.mkdir(exist_ok=True)
        (cache.folder / name).write_bytes(b"")
    with writing(cache.folder):
        found = verify(cache.folder)
    assert found.missing == ["view-0001/hint.layer3-00000.h5"]
    assert found.parts == [f"view-0000/{leftover.name}"]
    assert found.foreign == ["notes.txt", "view-0000/logits-00007.h5", "view-0009/logits-00000.h5"]
    assert not found.damaged
    assert not found.ok


def test_a_shard_in_another_shards_place_is_damage(cache: Cache) -> None:
    one, other = cache.shard_path(0, "logits", 0), cache.shard_path(1, "logits", 0)
    other.write_bytes(one.read_bytes())
    assert "has view 0, expected 1" in verify(cache.folder).damaged[0].what


def test_a_manifest_that_says_the_same_in_other_bytes_is_found(cache: Cache) -> None:
    path = cache.folder / "cache.json"
    path.write_bytes(path.read_bytes().replace(b'"rows": 20', b'"rows":  20'))
    assert Cache(cache.folder).rows == 20
    assert [d.file for d in verify(cache.folder).damaged] == ["cache.json"]


def test_exit_status_lines_and_json(cache: Cache, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(cache.folder)
    assert run(["verify", folder]) == 0
    assert "every byte is as it was written" in capsys.readouterr().out
    _flip(cache.shard_path(0, "logits", 0), 4200)
    assert run(["verify", folder]) == 1
    assert "damaged  view-0000/logits-00000.h5 (view 0, rows 0 to 15)" in capsys.readouterr().out
    assert run(["verify", folder, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is False
    assert found["damaged"][0]["file"] == "view-0000/logits-00000.h5"
    assert run(["verify", folder, "--repair"]) == 1
    assert "removed  view-0000/logits-00000.h5" in capsys.readouterr().out
    assert run(["verify", folder]) == 1
    assert "missing  view-0000/logits-00000.h5" in capsys.readouterr().out


def test_long_lists_are_cut_on_the_screen_and_whole_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = small_cache(tmp_path / "cache").folder
    for number in range(25):
        (folder / f"extra-{number}").touch()
    assert run(["verify", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("foreign  extra-") == 20
    assert "foreign  … and 5 more" in shown
    assert run(["verify", str(folder), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["foreign"]) == 25


def test_without_a_name_it_is_the_only_cache_in_caches(here: Path) -> None:
    with pytest.raises(CacheError, match="there is no cache"):
        verify()
    small_cache(here / "caches" / "one")
    assert verify().folder == Path("caches/one")
    with pytest.raises(CacheError, match="no such folder"):
        verify("nowhere")


def test_repair_waits_for_no_writer(cache: Cache) -> None:
    with writing(cache.folder), pytest.raises(LockedError):
        verify(cache.folder, repair=True)


def test_repair_takes_a_link_and_leaves_what_it_points_to(cache: Cache, tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("not a shard")
    shard = cache.shard_path(0, "logits", 0)
    shard.unlink()
    shard.symlink_to(mine)
    assert verify(cache.folder, repair=True).removed == ["view-0000/logits-00000.h5"]
    assert mine.read_text() == "not a shard"
    assert not os.path.lexists(shard)


def test_repaired_and_dumped_again_it_is_what_it_was(dumped: Callable[[], Path]) -> None:
    folder = dumped()
    cache = Cache(folder)
    names = [path.relative_to(folder) for path in files_of(folder)]
    before = {name: (folder / name).read_bytes() for name in names}
    logits, hint = cache.shard_path(1, "logits", 2), cache.shard_path(0, "hint.layer1", 0)
    for path in (logits, hint):
        _flip(path, _offset(path, "digest"))
    for name in ("rows.h5", "samples.h5"):
        _flip(folder / name, 4200)
    kept = {name: (folder / name).stat().st_ino for name in names}
    found = verify(folder, repair=True)
    gone = {"rows.h5", "samples.h5", *(str(p.relative_to(folder)) for p in (logits, hint))}
    assert set(found.removed) == gone | {"cache.h5"}
    dumped()
    assert verify(folder).ok
    assert (folder / "cache.h5").exists()
    for name in names:
        assert name.name == "cache.json" or (folder / name).read_bytes() == before[name], name
        assert str(name) in gone or name.name == "cache.json" or (folder / name).stat().st_ino == kept[name], name


def test_a_damaged_manifest_is_set_aside_and_the_shards_are_kept(dumped: Callable[[], Path]) -> None:
    folder = dumped()
    cache_id = Cache(folder).manifest.cache_id
    shards = {path: path.stat().st_ino for path in folder.rglob("view-*/*.h5")}
    _flip(folder / "cache.json", 400)
    with pytest.raises(IntegrityError):
        Cache(folder)
    found = verify(folder, repair=True)
    assert found.removed == ["cache.h5", "cache.json"]
    assert (folder / "cache.json.damaged").exists()
    dumped()
    assert Cache(folder).manifest.cache_id == cache_id
    assert {path: path.stat().st_ino for path in folder.rglob("view-*/*.h5")} == shards
    found = verify(folder)
    assert found.ok
    assert found.foreign == ["cache.json.damaged"]


KILLED_REPAIR = """
import os, pathlib, signal, sys
from softcache.stages import verify as module
folder, steps = sys.argv[1], 0
def last(*arguments, **options):
    global steps
    steps -= 1
    if steps < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return unlink(*arguments, **options)
unlink, pathlib.Path.unlink = pathlib.Path.unlink, last
sync, module.sync_folder = module.sync_folder, lambda path: None
for steps in (0, 1, 1):  # each child begins where the last one was killed
    child = os.fork()
    if not child:
        module.verify(folder, repair=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    print(sorted(str(p.relative_to(folder)) for p in pathlib.Path(folder).rglob("*.h5")))
"""


def test_a_repair_that_is_killed_is_begun_again(dumped: Callable[[], Path]) -> None:
    folder = dumped()
    before = {path: path.read_bytes() for path in files_of(folder) if path.suffix == ".h5"}
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.h5"))
    cache = Cache(folder)
    hurt = [cache.shard_path(view, "logits", 1) for view in range(2)]
    for path in hurt:
        _flip(path, _offset(path, "digest"))
    child = harness_process.run(
        [sys.executable, "-c", KILLED_REPAIR, str(folder)], capture_output=True, text=True, check=True
    )
    states = [json.loads(line.replace("'", '"')) for line in child.stdout.splitlines()]
    # cache.h5 goes first: it never shows zeros in place of a shard that is gone
    gone = [sorted(set(names) - set(state)) for state in states]
    assert gone == [[], ["cache.h5"], ["cache.h5", "view-0000/logits-00001.h5"]]
    verify(folder, repair=True)
    dumped()
    assert verify(folder).ok
    assert {path: path.read_bytes() for path in before} == before


def test_who_reads_keeps_what_a_repair_removes(cache: Cache) -> None:
    reader = cache.column("logits")
    before = reader.gather(0, np.arange(20))
    _flip(cache.shard_path(0, "logits", 0), 4200)
    assert verify(cache.folder, repair=True).removed == ["view-0000/logits-00000.h5"]
    after = reader.gather(0, np.arange(20))
    assert all(np.array_equal(after[name], before[name]) for name in before)
    with pytest.raises(IntegrityError, match="is missing"):
        Cache(cache.folder).column("logits").gather(0, np.arange(20))


def test_a_changed_number_is_refused_only_with_verify_reads(cache: Cache) -> None:
    rows, path = np.arange(20), cache.shard_path(0, "logits", 0)
    before = cache.column("logits").gather(0, rows)["values"]
    _flip(path, _offset(path, "values"))
    after = Cache(cache.folder).column("logits").gather(0, rows)["values"]
    assert np.argwhere(before != after).tolist() == [[0, 0]]
    with pytest.raises(IntegrityError, match=r"values doesn't match its checksum: run softcache verify"):
        Cache(cache.folder, verify_reads=True).column("logits").gather(0, rows)


@pytest.mark.parametrize("name", ["rows.h5", "samples.h5"])
def test_labels_and_samples_are_always_checked(name: str, cache: Cache) -> None:
    path = cache.folder / name
    _flip(path, _offset(path, "label" if name == "rows.h5" else "pixels"))
    with pytest.raises(IntegrityError, match="checksum"):
        _ = Cache(cache.folder).labels if name == "rows.h5" else Cache(cache.folder).samples


@pytest.mark.parametrize("codec", ["fp16", "fp32"])
def test_the_teacher_says_what_it_said(
    codec: str, here: Path, small_teacher: Callable[..., str], colour_arrays: str
) -> None:
    teacher = small_teacher("teacher", dataset=colour_arrays)
    folder = dump(teacher, dataset=colour_arrays, out="cache", views=2, shard_rows=64, codec=codec, amp="off").folder
    asked = {"sample": 100, "dataset": colour_arrays}
    found = verify(folder, teacher=teacher, **asked)
    assert found.ok
    assert found.teacher is not None
    assert found.teacher.keys == 100
    assert found.teacher.same_top1 > 0.98
    # logits of this size have at most 2**-11 of their size as fp16 error, and none as fp32 on the same machine
    assert found.teacher.largest <= (2**-11 * 300 if codec == "fp16" else 1e-3)
    assert run(["verify", str(folder), "--teacher", teacher, "--dataset", colour_arrays]) == 0

    other = small_teacher("other", dataset=colour_arrays, seed=8)
    found = verify(folder, teacher=other, **asked)
    assert not found.ok
    assert found.teacher is not None
    assert not found.teacher.same_weights
    assert found.teacher.beyond > 50
    assert run(["verify", str(folder), "--teacher", other, "--dataset", colour_arrays]) == 1


def test_logits_forged_with_a_right_checksum_are_found_by_the_teacher(dumped: Callable[[], Path], here: Path) -> None:
    folder = dumped()
    shard = Cache(folder).shard_path(0, "logits", 0)
    with h5py.File(shard, "r+", libver=("v110", "v110"), track_times=None) as file:
        values = file["values"]
        changed = values[...]
        changed[:, 0] += np.float16(0.05) * np.abs(changed).max(1)  # 5 % of the largest logit
        values[...] = changed
        values.attrs.modify("crc32", np.uint32(zlib.crc32(changed.tobytes())))
    assert verify(folder).ok
    dataset = f"arrays:{here / 'colours'}"
    found = verify(folder, teacher="teacher", sample=300, dataset=dataset)
    assert found.teacher is not None
    assert found.teacher.keys == 300
    assert found.teacher.beyond == 64
    assert not found.ok


def test_other_pixels_are_found_by_the_teacher(dumped: Callable[[], Path], here: Path) -> None:
    folder = dumped()
    images = np.load(here / "colours" / "train_images.npy")
    images[7] ^= 0xFF
    np.save(here / "colours" / "train_images.npy", images)
    found = verify(folder, teacher="teacher", sample=300, dataset=f"arrays:{here / 'colours'}")
    assert found.teacher is not None
    assert found.teacher.other_pixels == 2  # one row in two views
    assert not found.ok
