"""Several processes at one cache: parts of a dump, with and without working locks, and readers while it grows."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import Timeout
from harness_cache import make_cache
from harness_dump import LOCKS_FOR_ALL, NO_LOCKS, Setting, Warm, remove_unsigned_locks, shards, temporaries

import softcache.cache.locks
import softcache.cache.writer
from softcache.atomic import is_dead, writer_name
from softcache.cache.locks import MANIFEST_LOCK, changing, is_lock, remove_stale_locks, writing
from softcache.cache.reader import Cache
from softcache.cache.shard import ShardWriter
from softcache.cache.writer import update_state
from softcache.errors import CacheError, LockedError
from softcache.locks import locked
from softcache.training.folder import training_into

PARTS = 4


@pytest.fixture(scope="module")
def undisturbed(setting: Setting, warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("undisturbed") / "cache"
    assert warm.run(setting.command(folder)).status == 0
    return shards(folder)


def check(folder: Path, expected: dict[str, str]) -> None:
    assert shards(folder) == expected
    assert temporaries(folder) == []
    assert not [path.name for path in folder.iterdir() if is_lock(path.name)]
    cache = Cache(folder)
    assert not cache.missing(cache.manifest.columns, cache.views)
    assert cache.manifest.state.teacher_top1 is not None
    assert cache.manifest.state.columns["logits"].error


# slows every commit down, so that parts are at work at the same time
SLOW = "import os, time\nreplace = os.replace\nos.replace = lambda *a, **k: (time.sleep(0.01), replace(*a, **k))[1]\n"
SLOWER = SLOW.replace("0.01", "0.1")


@pytest.mark.parametrize("locks", ["locks", "no locks", "locks for all"])
def test_four_parts_at_once_make_one_cache(setting, warm, undisturbed, tmp_path, locks):
    folder = tmp_path / "cache"  # empty: all four want to make the manifest
    prepare = SLOW + {"locks": "", "no locks": NO_LOCKS, "locks for all": LOCKS_FOR_ALL}[locks]
    log = tmp_path / "forwards"
    pids = [
        warm.start(setting.command(folder, "--part", f"{k}/{PARTS}"), prepare=prepare, env={"FORWARDS": str(log)})
        for k in range(1, PARTS + 1)
    ]
    ended = [warm.wait(pid) for pid in pids]
    assert [end.status for end in ended] == [0] * PARTS, "\n".join(end.output for end in ended)
    check(folder, undisturbed)
    # nothing twice: 38 batches a view, and for each part one of a row for the hints' shapes, one to compare, and three
    # of two rows that say which precision and memory format suit the teacher
    assert log.stat().st_size <= 3 * 38 + 5 * PARTS
    assert all(("no locks on the file system" in end.output) == (locks == "no locks") for end in ended)


def test_the_same_part_twice_where_locks_are_granted_to_all_is_only_done_twice(setting, warm, undisturbed, tmp_path):
    folder = tmp_path / "cache"
    pids = [warm.start(setting.command(folder), prepare=SLOW + LOCKS_FOR_ALL) for _ in range(4)]
    ended = [warm.wait(pid) for pid in pids]
    assert [end.status for end in ended] == [0] * 4, "\n".join(end.output for end in ended)
    check(folder, undisturbed)


def test_the_same_part_twice_where_there_are_no_locks_is_refused(setting, warm, undisturbed, tmp_path):
    """A file's existence is the lock there."""
    folder = tmp_path / "cache"
    first = warm.start(setting.command(folder), prepare=SLOWER + NO_LOCKS)
    until_signed(folder / ".writing-1of1.lock.soft")
    second = warm.run(setting.command(folder), prepare=NO_LOCKS)
    assert second.status == 1, second.output
    assert f"{folder} is being written by process {first} on " in second.output
    assert "if it is gone already, remove" in second.output
    assert warm.wait(first).status == 0
    check(folder, undisturbed)
    killed = warm.start(setting.command(folder, "--views", "4"), prepare=SLOWER + NO_LOCKS)
    until_signed(folder / ".writing-1of1.lock.soft")
    os.kill(killed, signal.SIGKILL)
    warm.wait(killed)
    assert (folder / ".writing-1of1.lock.soft").exists()
    last = warm.run(setting.command(folder, "--views", "4"), prepare=NO_LOCKS)
    assert last.status == 0, last.output


def until_signed(lock: Path) -> None:
    """Waits until the lock's file says who holds it, which is a moment after it is there."""
    while not lock.exists() or not lock.read_text():
        time.sleep(0.01)


def test_a_lock_whose_holder_was_killed_before_it_could_sign_is_not_taken_over(tmp_path):
    """Nobody can know that such a holder is gone: it may have been stopped in that moment."""
    lock = tmp_path / ".writing-1of1.lock.soft"
    lock.touch()
    os.utime(lock, (0, 0))
    with (
        pytest.raises(LockedError, match=rf"held by another process: .* if it is gone already, remove {lock}"),
        locked(lock, "held", soft=True),
    ):
        pass
    assert lock.exists()


def test_parts_that_are_killed_and_started_again(setting, warm, undisturbed, tmp_path):
    folder = tmp_path / "cache"
    for seconds in (0.1, 0.25, 0.4):
        pids = [
            warm.start(setting.command(folder, "--part", f"{k}/{PARTS}"), prepare=SLOW) for k in range(1, PARTS + 1)
        ]
        time.sleep(seconds)
        for pid in pids:
            os.kill(pid, 9)
        for pid in pids:
            warm.wait(pid)
        remove_unsigned_locks(folder)
    assert warm.run(setting.command(folder)).status == 0  # alone: another division of the work
    check(folder, undisturbed)


def test_each_process_of_torchrun_does_its_share(setting, warm, undisturbed, tmp_path):
    folder = tmp_path / "cache"
    for rank in range(3):
        ended = warm.run(setting.command(folder), env={"RANK": str(rank), "WORLD_SIZE": "3", "LOCAL_RANK": str(rank)})
        assert ended.status == 0, ended.output
        held = sum(name.startswith("view") for name in shards(folder))
        assert held == 15 * (rank + 1)  # a third of 3 views × 5 row ranges × 3 columns
    check(folder, undisturbed)
    both = warm.run(setting.command(folder, "--part", "1/2"), env={"RANK": "0", "WORLD_SIZE": "3"})
    wrong = warm.run(setting.command(tmp_path / "other"), env={"RANK": "x", "WORLD_SIZE": "3"})
    assert (both.status, wrong.status) == (2, 2)
    assert "--part and torchrun both divide the work" in both.output
    assert "RANK is 'x'" in wrong.output


def test_a_second_writer_is_told_who_holds_it(setting, warm, tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    with writing(folder, (2, 4)):
        same = warm.run(setting.command(folder, "--part", "2/4"))
        other = warm.run(setting.command(folder))
        beside = warm.run(setting.command(folder, "--part", "1/4"))
    assert same.status == other.status == 1
    assert f"is being written by process {os.getpid()} on " in same.output
    assert "(part 2/4, since " in same.output
    assert f"process {os.getpid()} on " in other.output
    assert "--part K/4" in other.output
    assert beside.status == 0, beside.output


def test_locks_are_free_again_when_their_holder_is_gone(tmp_path):
    for part in ((1, 1), (2, 4), (1, 1)):
        with writing(tmp_path, part):
            pass
    with pytest.raises(ZeroDivisionError), writing(tmp_path):
        raise ZeroDivisionError
    with writing(tmp_path), pytest.raises(LockedError), writing(tmp_path):
        pytest.fail("a share was given out twice")
    (tmp_path / ".writing-3of9.lock").write_text("{")  # of a process that was killed
    with writing(tmp_path):
        pass
    (tmp_path / ".writing-1of1.lock").write_text("{")
    (tmp_path / MANIFEST_LOCK).write_text("77\nelsewhere\n")
    remove_stale_locks(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST_LOCK], "another host's is left alone"


@pytest.mark.parametrize("number", ["x", "", "-1", "0", "1.5", "٣", "9" * 10, "9" * 20, "9" * 5000])
def test_a_name_that_says_nothing_sensible_is_not_taken_for_a_dead_process(number):
    host, boot, _, token = writer_name().split("~")
    assert not is_dead(f"{host}~{boot}~{number}~{token}")


@pytest.mark.parametrize("locks", ["locks", "no locks"])
def test_no_change_of_the_manifest_is_lost(tmp_path, monkeypatch, locks):
    if locks == "no locks":
        monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    cache, _ = make_cache(tmp_path / "cache", rows=10)
    count, each = 8, 12

    def add(thread: int) -> None:
        for turn in range(each):
            note = {f"{thread}.{turn}": 1}
            update_state(cache.folder, lambda s, note=note: dataclasses.replace(s, made={**s.made, **note}))

    threads = [threading.Thread(target=add, args=(k,)) for k in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made = Cache(cache.folder).manifest.state.made
    assert set(made) == {f"{k}.{turn}" for k in range(count) for turn in range(each)}


@pytest.mark.timeout(60)
def test_a_lock_of_another_host_is_waited_for_and_never_taken_over(tmp_path, monkeypatch):
    """However old it is: that host may be slow, and two would change the manifest."""
    monkeypatch.setattr(softcache.cache.locks, "PATIENCE_S", 0.3)
    lock = tmp_path / MANIFEST_LOCK
    lock.write_text("77\nelsewhere\n12345\n")
    os.utime(lock, (0, 0))
    told = r"changed by process 77 on elsewhere.*: .* if it is gone already, remove /"
    with pytest.raises(LockedError, match=told), changing(tmp_path):
        pytest.fail("there were two holders")
    assert lock.read_text() == "77\nelsewhere\n12345\n"
    lock.unlink()  # as the message says
    with changing(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


# A child that becomes another user: after its imports, as that user may not be able to read the interpreter's files.
BECOME = """
import ctypes, os
import softcache.cache.locks
def become(user):
    if user != os.getuid():
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
"""
HOLD = f"""{BECOME}
import sys, time
from pathlib import Path
from softcache.cache.locks import changing, writing
become(int(sys.argv[4]))
hold = {{"changing": changing, "writing": writing}}[sys.argv[1]]
with hold(Path(sys.argv[2])):
    print("held", flush=True)
    time.sleep(float(sys.argv[3]))
"""


@contextlib.contextmanager
def holding(kind: str, folder: Path, user: int | None = None):
    """A process that holds a lock, as another user if one is given."""
    user = os.getuid() if user is None else user
    command = [sys.executable, "-c", HOLD, kind, str(folder), "60", str(user)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("kind", "hold"), [("changing", changing), ("writing", writing)])
def test_who_waits_behind_a_stopped_process_is_told_so_and_waits_no_longer(tmp_path, monkeypatch, kind, hold):
    monkeypatch.setattr(softcache.cache.locks, "PATIENCE_S", 0.3)
    with holding(kind, tmp_path) as process:
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        began = time.monotonic()
        with pytest.raises(LockedError) as refused, hold(tmp_path):
            pytest.fail("there were two holders")
        assert time.monotonic() - began < 5
        assert f"by process {process.pid} on {socket.gethostname()}, which is stopped" in str(refused.value)
        if sys.platform == "linux":
            assert f"kill -CONT {process.pid} lets it go on" in str(refused.value)
        process.kill()
        process.wait()
        with hold(tmp_path):  # at once: it is certainly gone
            pass
    assert list(tmp_path.iterdir()) == []


ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="being two users needs the administrator")
ONE, OTHER = 4001, 4002


@pytest.fixture
def team(tmp_path):
    """A folder that two users may write to, who can reach it."""
    folder = Path(tempfile.mkdtemp(prefix="softcache-team-"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


AS_OTHER = f"""{BECOME}
import sys
from pathlib import Path
os.umask(0o077)
from softcache.cache.locks import changing, remove_stale_locks, writing
become(int(sys.argv[3]))
softcache.cache.locks.PATIENCE_S = 0.3
from softcache.errors import LockedError
hold, folder = {{"changing": changing, "writing": writing}}[sys.argv[1]], Path(sys.argv[2])
remove_stale_locks(folder)
try:
    with hold(folder):
        print("held")
except LockedError as error:
    print(error)
"""


def as_other(kind: str, folder: Path, user: int = OTHER) -> str:
    command = [sys.executable, "-c", AS_OTHER, kind, str(folder), str(user)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@ROOT
@pytest.mark.parametrize("kind", ["changing", "writing"])
@pytest.mark.parametrize("mode", [0o777, 0o1777], ids=["shared", "sticky"])
def test_two_users_take_turns_at_a_teams_cache(team, kind, mode):
    team.chmod(mode)
    with holding(kind, team, user=ONE) as process:
        assert f"by process {process.pid} on {socket.gethostname()} of user {ONE}" in as_other(kind, team)
    # What the killed one left is in nobody's way, but where a sticky bit lets nobody else remove it.
    after = as_other(kind, team)
    if mode == 0o777:
        assert after == "held"
        assert list(team.iterdir()) == []
    else:
        (left,) = team.iterdir()
        assert after.endswith(f"if it is gone already, remove {left}"), after
    assert as_other(kind, team, user=ONE) == "held"
    assert as_other(kind, team) == "held"
    assert list(team.iterdir()) == []


@ROOT
def test_a_folder_that_may_not_be_written_to_is_named(team):
    team.chmod(0o755)
    command = [sys.executable, "-c", HOLD, "writing", str(team), "0", str(OTHER)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines()[-1] == f"softcache.errors.SoftcacheError: can't write to {team}: Permission denied"


def test_looking_for_stale_locks_refuses_no_writer_that_starts(tmp_path):
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            remove_stale_locks(tmp_path)

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(200):
            with writing(tmp_path):
                assert (tmp_path / ".writing-1of1.lock").exists(), "a lock that is held was removed"
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("locks", ["locks", pytest.param("no locks", marks=pytest.mark.torture)])
@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc whether a process has ended")
def test_never_two_hold_a_lock_that_is_taken_released_and_killed_all_the_time(tmp_path, locks):
    """Eight processes, of which one a moment is killed while it holds the lock or is about to: each holder makes a
    file that must not be there, so that two at a time would be seen."""
    code = (NO_LOCKS if locks == "no locks" else "") + TURNS
    with contextlib.ExitStack() as stack:

        def start() -> subprocess.Popen:
            process = stack.enter_context(
                subprocess.Popen([sys.executable, "-c", code, tmp_path], stderr=-1, text=True)
            )
            stack.callback(process.kill)
            return process

        work, killed, turns = [start() for _ in range(8)], 0, tmp_path / "turns"
        turns.touch()
        end = time.monotonic() + 100  # on a machine that has much else to do
        while (killed < 12 or turns.stat().st_size < 100) and time.monotonic() < end:
            seen, patience = turns.stat().st_size, time.monotonic() + 10
            while turns.stat().st_size == seen and time.monotonic() < patience:
                time.sleep(0.1)  # on a busy machine a process takes seconds until it has its first turn
            time.sleep(0.3)
            victim = work.pop(0)
            victim.kill()
            killed += 1
            assert victim.communicate()[1] == ""  # nor had it found another holder
            work.append(start())
        (tmp_path / "end").touch()
        for process in work:
            assert process.communicate(timeout=60)[1] == ""
            assert process.returncode == 0
    assert turns.stat().st_size >= 100, "the lock was hardly ever given out"


TURNS = """
import contextlib, logging, os, sys, time
from pathlib import Path
from softcache.errors import LockedError
from softcache.locks import locked
logging.disable()
folder = Path(sys.argv[1])
mine = folder / f"inside-{os.getpid()}"

def ended(pid):
    # the kernel takes a killed process's lock back a moment before it counts as ended
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True

while not (folder / "end").exists():
    with contextlib.suppress(LockedError), locked(folder / "lock", "busy", wait=2):
        for other in folder.glob("inside-*"):
            until = time.monotonic() + 5
            while not ended(other.name[7:]):
                if not other.exists() or time.monotonic() > until:
                    sys.exit(f"{other.name[7:]} was inside, and so is {os.getpid()}")
            other.unlink()
        mine.touch()
        with open(folder / "turns", "ab") as turns:
            turns.write(b".")
        time.sleep(0.001)
        mine.unlink()
"""


@pytest.mark.parametrize("lost", ["cache.json", "rows.h5"])
def test_only_small_things_are_done_while_others_wait_for_the_manifest(tmp_path, monkeypatch, lost):
    """As others wait for the lock only so long: no row is written under it, and no shard is looked into."""
    done = []

    def watched(module, name):
        original = getattr(module, name)

        def call(*arguments, **options):
            done.append((name, (tmp_path / "cache" / MANIFEST_LOCK).exists()))
            return original(*arguments, **options)

        monkeypatch.setattr(module, name, call)

    watched(ShardWriter, "write")
    watched(ShardWriter, "finish")
    watched(softcache.cache.writer, "read_structure")
    watched(softcache.cache.writer, "commit")
    cache, _ = make_cache(tmp_path / "cache", rows=300, shard_rows=64, views=1)
    assert ("commit", True) in done, "the lock wasn't seen"
    before = shards(cache.folder)
    (cache.folder / lost).unlink()
    done.clear()
    make_cache(tmp_path / "cache", rows=300, shard_rows=64, views=1, written=False)
    assert {name for name, locked in done if locked} == {"commit"}
    assert ("read_structure", False) in done or lost == "rows.h5"
    assert shards(cache.folder) == before
    assert temporaries(cache.folder) == []


def test_a_manifest_that_is_taken_away_meanwhile_is_not_made_up(tmp_path, monkeypatch):
    cache, _ = make_cache(tmp_path / "cache", rows=300, shard_rows=64, views=1)
    enter = softcache.cache.writer.changing

    def later(folder):
        (folder / "cache.json").rename(folder / "cache.json.damaged")  # as verify --repair does
        return enter(folder)

    monkeypatch.setattr(softcache.cache.writer, "changing", later)
    with pytest.raises(CacheError, match="was taken away or repaired meanwhile: run the same command again"):
        make_cache(tmp_path / "cache", rows=300, shard_rows=64, views=1, written=False)
    assert not (cache.folder / "cache.json").exists()


def test_four_trainers_read_while_a_fifth_process_extends(setting, warm, undisturbed, tmp_path):
    folder = tmp_path / "cache"
    assert warm.run(setting.command(folder, "--views", "1", base=True)).status == 0
    train = [
        *("train", "--student", "cifar:resnet8", "--cache", str(folder), "--epochs", "1", "--device", "cpu"),
        *("--dataset", f"arrays:{setting.root / 'data.npz'}", "--batch-size", "100", "--workers", "0"),
    ]
    alone = warm.run([*train, "--out", str(tmp_path / "alone")])
    assert alone.status == 0, alone.output
    trainers = [warm.start([*train, "--out", str(tmp_path / f"run-{k}")], prepare=SLOW) for k in range(4)]
    extending = warm.start(setting.command(folder), prepare=SLOW)
    read = 0
    before = Cache(folder)
    expected = before.column("logits").gather(0, np.arange(before.rows))
    while read < 15:  # a reader of its own beside the trainers: whatever it finds is whole and does not change
        cache = Cache(folder, verify_reads=True)
        for column in cache.manifest.columns:
            for view in cache.complete_views(column):
                cache.column(column).gather(view, np.arange(cache.rows))
        found = cache.column("logits").gather(0, np.arange(cache.rows))
        assert all(np.array_equal(found[name], expected[name]) for name in expected)
        read += 1
    ended = [warm.wait(pid) for pid in [*trainers, extending]]
    assert [end.status for end in ended] == [0] * 5, "\n".join(end.output for end in ended)
    check(folder, undisturbed)
    weights = [
        (tmp_path / name / "student.safetensors").read_bytes() for name in ["alone", *(f"run-{k}" for k in range(4))]
    ]
    assert len({*weights}) == 1, "a run's result depends on what another process did"
    assert json.loads((folder / "cache.json").read_text())["state"]["views"] == 3


def test_a_training_that_times_out_is_not_taken_for_a_held_folder(tmp_path):
    """filelock's own error, as a dataset that locks something raises it within a training."""
    with pytest.raises(Timeout), training_into(tmp_path, "the same command"):
        raise Timeout("elsewhere.lock")
    with training_into(tmp_path, "the same command"):
        told = rf"{tmp_path} is being trained by process {os.getpid()} on .*: wait for it, or end it$"
        with pytest.raises(LockedError, match=told), training_into(tmp_path, "the same command"):
            pytest.fail("there were two trainings")
    assert list(tmp_path.iterdir()) == []
