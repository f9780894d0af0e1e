"""A conversion that is killed, whose disk is full, or that runs twice at once: the same bytes come out."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from harness_convert import files
from harness_dump import DIE_AT_STEP, HINTS, LOCKS_FOR_ALL, Setting, Warm, remove_unsigned_locks, temporaries, times

from softcache.cache.reader import Cache
from softcache.stages.dump import dump
from softcache.stages.verify import verify

KIB = 1024
KILLS = pytest.param(100, id="100", marks=pytest.mark.torture)
SLOWER = "import os, time\nreplace = os.replace\nos.replace = lambda *a, **k: (time.sleep(0.1), replace(*a, **k))[1]\n"
# As where the estimate can't know it: quotas, other writers.
EVERY_PIECE = "import softcache.console\nsoftcache.console.Bar.EVERY_S = 0\n"
NOT_FORESEEN = "import softcache.stages.convert\nsoftcache.stages.convert.refuse_too_large = lambda *_: None\n"

pytestmark = pytest.mark.timeout(900)  # a machine that is busy with other work takes its time


@pytest.fixture(scope="module")
def source(setting: Setting, warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "cache"
    assert warm.run(setting.command(folder, "--codec", "fp32")).status == 0
    return folder


def command(source: Path, out: Path) -> list[str]:
    """Three columns: one is fitted, one coded anew, and one copied in shards of another size."""
    columns = ["--output", "logits:codec=int:bits=5", "--hint", f"{HINTS[0]}:codec=int8"]
    return ["convert", str(source), str(out), *columns, "--shard-rows", "32", "--device", "cpu"]


@pytest.fixture(scope="module")
def undisturbed(source: Path, warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A conversion that nobody disturbed, and its seconds."""
    folder = tmp_path_factory.mktemp("undisturbed") / "made"
    began = time.perf_counter()
    ended = warm.run(command(source, folder))
    assert ended.status == 0, ended.output
    seconds = time.perf_counter() - began
    assert len(files(folder)) == 3 * 3 * 10 + 3  # views × columns × shards, rows, samples and constants
    return folder, seconds


def check(folder: Path, wanted: Path) -> None:
    assert files(folder) == files(wanted)
    assert temporaries(folder) == []
    ours, theirs = Cache(folder).manifest, Cache(wanted).manifest
    assert ours.state.columns == theirs.state.columns  # measured errors too, to the last bit
    assert ours.state.teacher_top1 == theirs.state.teacher_top1
    assert verify(folder).ok
    assert verify(folder).foreign == []
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in wanted.iterdir())


def finish(warm: Warm, source: Path, folder: Path) -> None:
    ended = warm.run(command(source, folder))
    assert ended.status == 0, ended.output


@pytest.mark.parametrize("kills", [4, KILLS])
def test_bytes_are_the_same_however_often_it_is_killed(source, warm, undisturbed, tmp_path, kills):
    wanted, seconds = undisturbed
    expected, rng, died, number = files(wanted), random.Random(5), 0, 0
    while died < kills:
        folder = tmp_path / f"made-{number}"
        number += 1
        before: dict = {}
        span = seconds
        while True:
            ended = warm.run(command(source, folder), kill_after=rng.uniform(0, span))
            remove_unsigned_locks(folder)
            assert ended.status in (0, -9), ended.output
            after = times(folder)
            # a finished shard is never written again, and never lost
            assert {name: after[name] for name in before} == before
            there = files(folder) if (folder / "samples.h5").exists() and (folder / "rows.h5").exists() else {}
            assert all(expected[name] == sha for name, sha in there.items())
            if len(after) == len(before):
                span *= 1.5  # or a machine that has become slower would never let it end
            before = after
            if ended.status == 0:
                break
            died += 1
        check(folder, wanted)
        shutil.rmtree(folder)


STEPS = (1, 3, 5, 8, 12, 40)  # of some 280: the folder, constants, rows, samples, the manifest, a shard


@pytest.mark.parametrize(
    "step", [k if k in STEPS else pytest.param(k, marks=pytest.mark.torture) for k in range(1, 300)]
)
def test_killed_before_any_step_that_others_can_see(source, warm, undisturbed, tmp_path, step):
    folder = tmp_path / "made"
    first = warm.run(command(source, folder), prepare=DIE_AT_STEP.format(step=step))
    assert first.status in (-9, 0), first.output
    began = time.perf_counter()
    finish(warm, source, folder)
    assert time.perf_counter() - began < 20, "waited for a lock that a dead process left"
    check(folder, undisturbed[0])


def test_what_was_fitted_is_not_fitted_again(source, warm, undisturbed, tmp_path):
    """Also where the source would now give other numbers: shards that are there need those that were fitted."""
    folder = tmp_path / "made"
    ended = warm.run(command(source, folder), prepare=DIE_AT_STEP.format(step=60))
    assert ended.status == -9
    assert list(folder.glob(f"view-*/hint.{HINTS[0]}-*.h5"))
    constants = folder / f"column-hint.{HINTS[0]}.h5"
    there = constants.stat().st_ino
    finish(warm, source, folder)
    assert constants.stat().st_ino == there
    check(folder, undisturbed[0])
    constants.unlink()  # what is lost is fitted again to the same numbers
    finish(warm, source, folder)
    check(folder, undisturbed[0])


ROOMS = (8, 120, 500)


@pytest.mark.parametrize("room", [k if k in ROOMS else pytest.param(k, marks=pytest.mark.torture)
                                  for k in sorted({*ROOMS, *range(4, 1200, 40)})])  # fmt: skip
def test_a_full_disk(source, warm, undisturbed, small_disk, room):
    """Full while constants are written, the samples, the manifest, an early shard, a late one."""
    disk, resize = small_disk
    resize(room * KIB)
    folder = disk / "made"
    ended = warm.run(command(source, folder), prepare=NOT_FORESEEN)
    assert ended.status == 1, ended.output
    errors = [line for line in ended.output.splitlines() if line.startswith("softcache:")]
    assert len(errors) == 1
    assert f"disk full at {folder} (ENOSPC, no space left)" in errors[0]
    assert "free space and run the same command again" in errors[0]
    assert "Traceback" not in ended.output
    assert temporaries(disk) == []
    expected = files(undisturbed[0])
    for shard in folder.glob("view-*/*.h5"):
        assert str(shard.relative_to(folder)) in expected
    resize(64 * 2**20)
    finish(warm, source, folder)
    check(folder, undisturbed[0])


def test_a_conversion_that_can_not_fit_stops_before_it_starts(source, warm, small_disk):
    disk, resize = small_disk
    resize(400 * KIB)
    ended = warm.run(command(source, disk / "made"))
    assert ended.status == 1
    assert "MiB more and there are" in ended.output
    assert list(disk.iterdir()) == []


def test_a_second_one_is_told_who_is_at_work(source, warm, undisturbed, tmp_path):
    folder = tmp_path / "made"
    first = warm.start(command(source, folder), prepare=SLOWER)
    until = time.monotonic() + 60
    while not list(folder.glob("view-0000/*.h5")) and time.monotonic() < until:
        time.sleep(0.01)
    second = warm.run(command(source, folder))
    assert second.status == 1
    assert f"{folder} is being written by process {first} on" in second.output
    assert warm.wait(first).status == 0
    check(folder, undisturbed[0])


def test_two_at_once_where_locks_are_granted_to_all_make_one_cache(source, warm, undisturbed, tmp_path):
    folder = tmp_path / "made"
    both = [warm.start(command(source, folder), prepare=LOCKS_FOR_ALL) for _ in range(2)]
    for pid in both:
        ended = warm.wait(pid)
        assert ended.status == 0, ended.output
    check(folder, undisturbed[0])


def test_it_says_how_far_it_is_and_how_to_go_on(source, warm, tmp_path):
    folder = tmp_path / "made"
    pid = warm.start(command(source, folder), prepare=SLOWER + EVERY_PIECE)
    until = time.monotonic() + 60
    while not list(folder.glob("view-0000/*.h5")) and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(pid, signal.SIGTERM)
    ended = warm.wait(pid)
    assert ended.status == 143, ended.output
    assert f"keys are in {folder} and stay valid: run the same command again to go on" in ended.output
    assert "convert: " in ended.output
    assert " bytes (" in ended.output
    assert temporaries(folder) == []


WIDE = """
import numpy as np

NUMBERS = np.linspace(-1, 1, 1 << 19, dtype=np.float32)


def make():
    return lambda features: {"wide": features[:, :1] * NUMBERS}
"""
MOST_MIB = 150  # of memory that is no file's, beside what the process had: some pieces of 8 MiB, and their copies


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux how much memory a process has")
def test_memory_is_that_of_some_rows_however_large_a_shard_is(warm, tmp_path):
    """A shard of 192 MiB, of rows of 2 MiB."""
    np.save(tmp_path / "train_features.npy", np.random.default_rng(0).normal(size=(96, 2)).astype(np.float32))
    (tmp_path / "wide.py").write_text(WIDE)
    dump(
        f"{tmp_path / 'wide.py'}:make", dataset=f"arrays:{tmp_path}", out=tmp_path / "source", output="wide:codec=fp32",
        batch_size=8, shard_rows=128, device="cpu", workers=0,
    )  # fmt: skip
    assert Cache(tmp_path / "source").manifest.shards("wide") == 1
    arguments = ["convert", str(tmp_path / "source"), str(tmp_path / "made"), "--codec", "int:bits=8"]
    pid, used = warm.start([*arguments, "--device", "cpu"]), []
    with contextlib.suppress(OSError, IndexError):  # it has ended
        while not (tmp_path / "made" / "view-0000" / "wide-00000.h5").exists():  # then the error is measured
            status = Path(f"/proc/{pid}/status").read_text()
            used.append(int(status.split("RssAnon:")[1].split()[0]) / KIB)
            time.sleep(0.002)
    ended = warm.wait(pid)
    assert ended.status == 0, ended.output
    assert max(used) - used[0] < MOST_MIB
    assert verify(tmp_path / "made").ok
