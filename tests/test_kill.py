"""A dump that is killed at any moment loses at most the shard in flight, and its bytes come out the same."""

from __future__ import annotations

import dataclasses
import random
import sys
import time
from pathlib import Path

import pytest
from harness_dump import (
    BATCH,
    CLASSES,
    DIE_AT_STEP,
    HINTS,
    SHARD_ROWS,
    Ended,
    Setting,
    Warm,
    make_words_setting,
    remove_unsigned_locks,
    shards,
    temporaries,
    times,
)

from softcache.cache import locks
from softcache.cache.locks import MANIFEST_LOCK
from softcache.cache.reader import Cache
from softcache.cache.writer import update_state
from softcache.cli._main import run
from softcache.dumping.pipeline import QUEUE_LIMIT

KILLS = pytest.param(100, id="100", marks=pytest.mark.torture)

pytestmark = pytest.mark.timeout(900)  # a machine that is busy with other work takes its time


@pytest.fixture(scope="module")
def undisturbed(setting: Setting, warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, float, int]:
    """Shards of a dump that nobody disturbed, its seconds, and how often it ran the teacher."""
    root = tmp_path_factory.mktemp("undisturbed")
    began = time.perf_counter()
    assert warm.run(setting.command(root / "cache"), env={"FORWARDS": str(root / "forwards")}).status == 0
    seconds = time.perf_counter() - began
    found = shards(root / "cache")
    assert len(found) == 3 * 3 * 5 + 2  # views × columns × shards, rows and samples
    return found, seconds, (root / "forwards").stat().st_size


class Moments:
    """When the next start is killed: at random within ``seconds``, what a dump has taken undisturbed. A start that
    dies before it has finished a shard lengthens that by a half, or a machine that has become slower since than when it
    was taken would never let a dump end."""

    def __init__(self, seed: int, seconds: float):
        self._rng, self._seconds = random.Random(seed), seconds

    def next(self) -> float:
        return self._rng.uniform(0, self._seconds)

    def died(self, *, in_vain: bool) -> None:
        if in_vain:
            self._seconds *= 1.5


def resume(warm: Warm, command: list[str]) -> Ended:
    ended = warm.run(command)
    assert ended.status == 0, ended.output
    return ended


def check(folder: Path, expected: dict[str, str]) -> None:
    assert shards(folder) == expected
    assert temporaries(folder) == []
    cache = Cache(folder)
    assert not cache.missing(cache.manifest.columns, cache.views)
    assert sorted(p.name for p in folder.iterdir()) == [
        *("cache.h5", "cache.json", "rows.h5", "samples.h5"),
        *(f"view-{view:04d}" for view in range(cache.views)),
    ]


@pytest.mark.parametrize("kills", [2, KILLS])
def test_bytes_are_the_same_however_often_a_dump_is_killed(setting, warm, undisturbed, tmp_path, kills):
    expected, seconds, forwards = undisturbed
    log, died, number = tmp_path / "forwards", 0, 0
    while died < kills:
        folder = tmp_path / f"cache-{number}"
        number += 1
        before: dict = {}
        log.unlink(missing_ok=True)
        deaths, moments = 0, Moments(17 + number, 1.1 * seconds)
        while True:
            ended = warm.run(setting.command(folder), kill_after=moments.next(), env={"FORWARDS": str(log)})
            remove_unsigned_locks(folder)
            assert ended.status in (0, -9), ended.output
            after = times(folder)
            # a finished shard is never written again, and never lost
            assert {name: after[name] for name in before} == before
            assert all(expected[name] == sha for name, sha in shards(folder).items() if name.startswith("view"))
            moments.died(in_vain=len(after) == len(before))
            before = after
            if ended.status == 0:
                break
            deaths += 1
        died += deaths
        check(folder, expected)
        # Each start costs one batch for the hints' shapes and one that is compared; each kill the shard in flight,
        # and the batches that were on their way to the writer.
        lost = log.stat().st_size - forwards
        assert lost <= deaths * (2 + SHARD_ROWS // BATCH + QUEUE_LIMIT + 2)


STEPS = (2, 4, 6, 8, 11)  # of some 170: the folder, rows, samples, manifest, a first shard


@pytest.mark.parametrize(
    "step", [k if k in STEPS else pytest.param(k, marks=pytest.mark.torture) for k in range(1, 180)]
)
def test_killed_before_any_step_that_others_can_see(setting, warm, undisturbed, tmp_path, step):
    """The first steps make the folder, its rows, samples and manifest; then come shards, the state, cache.h5."""
    folder = tmp_path / "cache"
    first = warm.run(setting.command(folder), prepare=DIE_AT_STEP.format(step=step))
    assert first.status in (-9, 0), first.output
    began = time.perf_counter()
    resume(warm, setting.command(folder))
    assert time.perf_counter() - began < 20, "waited for a lock that a dead process left"
    check(folder, undisturbed[0])


@pytest.fixture(scope="module")
def words(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> tuple[Setting, dict]:
    """A dump of rows that have lengths of their own, and its shards where nobody disturbed it."""
    root = tmp_path_factory.mktemp("words")
    setting = make_words_setting(root / "setting")
    resume(warm, setting.command(root / "cache"))
    found = shards(root / "cache")
    assert len(found) == 4 * 5 + 2  # columns × shards, rows and samples
    return setting, found


WORDS_STEPS = (6, 27)  # of some 90


@pytest.mark.parametrize(
    "step", [k if k in WORDS_STEPS else pytest.param(k, marks=pytest.mark.torture) for k in range(1, 100)]
)
def test_a_dump_of_ragged_columns_is_killed_before_any_step(words, warm, tmp_path, step):
    """Killed twice: the second start reads shards that the first one wrote, and compares them."""
    setting, expected = words
    folder = tmp_path / "cache"
    for die in (step, 9):
        ended = warm.run(setting.command(folder), prepare=DIE_AT_STEP.format(step=die))
        assert ended.status in (-9, 0), ended.output
        assert all(expected[name] == sha for name, sha in shards(folder).items() if name.startswith("view"))
    resume(warm, setting.command(folder))
    check(folder, expected)


@pytest.mark.torture
@pytest.mark.parametrize("kills", [30])
def test_killed_while_a_cache_is_extended(setting, warm, undisturbed, tmp_path, kills):
    expected, seconds, _ = undisturbed
    died, number = 0, 0
    while died < kills:
        folder = tmp_path / f"cache-{number}"
        number += 1
        resume(warm, setting.command(folder, "--views", "1", base=True))
        whole = times(folder)
        assert len(whole) == 5
        for more in (["--views", "2"], ["--hint", HINTS[0]], ["--views", "3", "--hint", HINTS[1]]):
            moments = Moments(23 + died + number, 0.9 * seconds)
            while True:
                command = setting.command(folder, *more, base=True)
                ended = warm.run(command, kill_after=moments.next())
                remove_unsigned_locks(folder)
                assert ended.status in (0, -9), ended.output
                after = times(folder)
                assert {name: after[name] for name in whole} == whole
                moments.died(in_vain=len(after) == len(whole))
                whole = after
                if ended.status == 0:
                    break
                died += 1
        assert {k: v for k, v in shards(folder).items() if k.startswith("view")} == {
            k: v for k, v in expected.items() if k.startswith("view")
        }
        check(folder, expected)


def test_leftovers_of_the_dead_are_removed_and_reported_and_those_of_others_left(setting, warm, tmp_path):
    # Most steps have a file under its temporary name, and which ones don't is no business of this test.
    for step in (30, 31, 32):
        folder = tmp_path / str(step)
        killed = warm.run(setting.command(folder), prepare=DIE_AT_STEP.format(step=step))
        assert killed.status == -9
        own = temporaries(folder)
        if own:
            break
    assert own
    name, host, boot, pid, token = own[0].removesuffix(".part").split("~")
    others = {
        "another host": f"{name}~elsewhere~{boot}~{pid}~{token}.part",
        "a living process": f"{name}~{host}~{boot}~1~{token}.part",
        "another namespace of pids": f"{name}~{host}~{boot.partition('.')[0]}.1~{pid}~{token}.part",
        "not ours at all": ".something.part",
    }
    for other in others.values():
        (folder / other).write_bytes(b"x")
    rebooted = f"{name}~{host}~00000000.1~1~{token}.part"
    (folder / rebooted).write_bytes(b"x")
    ended = resume(warm, setting.command(folder))
    assert temporaries(folder) == sorted(others.values())
    for gone in [*own, rebooted]:
        assert f"removed {gone}: its writer is gone" in ended.output


def test_killed_between_the_last_shard_and_the_end(setting, warm, undisturbed, tmp_path):
    folder = tmp_path / "cache"
    resume(warm, setting.command(folder))
    cache = Cache(folder)
    assert cache.manifest.state.teacher_top1 is not None
    (folder / "cache.h5").unlink()
    ended = warm.run(setting.command(folder), env={"FORWARDS": str(tmp_path / "log")})
    assert ended.status == 0
    assert not (tmp_path / "log").exists(), "the teacher ran for nothing"
    check(folder, undisturbed[0])
    assert cache.layout("logits").width == CLASSES


def test_an_end_that_waits_for_a_lock_in_vain_says_so(setting, warm, tmp_path, monkeypatch, capfd):
    """Of a process that died before it had signed the manifest's lock, a file, nobody can tell that it is gone."""
    folder = tmp_path / "cache"
    resume(warm, setting.command(folder))
    (folder / "cache.h5").unlink()
    update_state(folder, lambda state: dataclasses.replace(state, teacher_top1=None))
    (folder / MANIFEST_LOCK).touch()
    monkeypatch.setattr(locks, "PATIENCE_S", 0.2)
    assert run(setting.command(folder)) == 1
    assert f"if it is gone already, remove {folder / MANIFEST_LOCK}" in capfd.readouterr().err
    (folder / MANIFEST_LOCK).unlink()
    assert run(setting.command(folder)) == 0
    assert (folder / "cache.h5").exists()
    assert Cache(folder).manifest.state.teacher_top1 is not None


# Kills itself when a file has been written, and is about to take this name.
DIE_AT_NAME = """
import os
replace = os.replace
def dying(source, target):
    if os.path.basename(target) == {name!r}:
        os.kill(os.getpid(), 9)
    replace(source, target)
os.replace = dying
"""


@pytest.mark.parametrize(
    ("stage", "name"),
    [("train", "checkpoint.pt"), ("train", "best.safetensors"), ("train", "metrics.jsonl"), ("teach", "checkpoint.pt")],
)
def test_leftovers_of_a_killed_training_go_with_the_next_start(setting, warm, tmp_path, stage, name):
    out = tmp_path / "out"
    options = [
        *("--dataset", f"arrays:{setting.root / 'data.npz'}", "--device", "cpu", "--workers", "0", "--epochs", "1"),
        *("--batch-size", "100", "--out", str(out)),
    ]
    command = {
        "train": ["train", "--student", "cifar:resnet8", "--alpha", "0", "--val-fraction", "0.1", *options],
        "teach": ["teach", "--model", "cifar:resnet8", *options],
    }[stage]
    killed = warm.run(command, prepare=DIE_AT_NAME.format(name=name))
    assert killed.status == -9, killed.output
    (own,) = temporaries(out)
    assert own.startswith(f".{name}~")
    _, _, boot, pid, token = own.removesuffix(".part").split("~")
    (out / f".{name}~elsewhere~{boot}~{pid}~{token}.part").write_bytes(b"of another host")
    again = resume(warm, ["train", "--resume", str(out)] if stage == "train" else command)
    assert temporaries(out) == [f".{name}~elsewhere~{boot}~{pid}~{token}.part"]
    assert f"removed {own}: its writer is gone" in again.output
    assert not (out / ".lock").exists()


LOG_OF_STEPS = """
import os, stat
log = os.open({path!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def told(name, place):
    original = getattr(os, name)
    def call(*arguments, **options):
        result = original(*arguments, **options)
        where = place(*arguments)
        if where:
            os.write(log, (name + " " + where + "\\n").encode())
        return result
    setattr(os, name, call)
told("mkdir", lambda path, *_: os.fspath(path))
told("replace", lambda source, target: os.fspath(target))
told("fsync", lambda fd: stat.S_ISDIR(os.fstat(fd).st_mode) and os.readlink(f"/proc/self/fd/{{fd}}"))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_views_folder_is_on_the_disk_before_a_shard_is_in_it(setting, warm, tmp_path):
    folder = tmp_path / "cache"
    resume_with = LOG_OF_STEPS.format(path=str(tmp_path / "log"))
    assert warm.run(setting.command(folder), prepare=resume_with).status == 0
    steps = (tmp_path / "log").read_text().splitlines()
    for view in range(3):
        made = steps.index(f"mkdir {folder}/view-{view:04d}")
        first = next(k for k, step in enumerate(steps) if step.startswith(f"replace {folder}/view-{view:04d}/"))
        assert f"fsync {folder}" in steps[made:first]
