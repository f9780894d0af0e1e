"""Ctrl-C and SIGTERM drop the shard in flight, say where things stand, and leave no process behind."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from harness_dump import Setting, Warm, make_setting, shards, temporaries

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return make_setting(tmp_path_factory.mktemp("setting"), rows=700)


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory):
    with Warm(tmp_path_factory.mktemp("warm")) as warm:
        yield warm


def workers_of(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        fields = state(path)
        if fields and fields[0] != "Z" and int(fields[1]) == pid:
            found.append(int(path.parent.name))
    return found


def state(path: Path) -> list[str]:
    """State, parent, … of a process; nothing where it is gone."""
    try:
        return path.read_text().rpartition(")")[2].split()
    except OSError:
        return []


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if state(Path(f"/proc/{pid}/stat"))[:1] not in ([], ["Z"])]


def wait_until(condition, seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def start(setting: Setting, warm: Warm, folder: Path) -> tuple[int, list[int]]:
    """A dump that has finished some shards, with two worker processes."""
    command = setting.command(folder, "--workers", "2")
    command[command.index("crop:pad=1+flip")] = "rrc+flip"
    pid = warm.start(command)
    assert wait_until(lambda: len(list(folder.glob("view-*/[!.]*.h5"))) >= 3)
    workers = workers_of(pid)
    assert len(workers) == 2
    return pid, workers


@pytest.mark.parametrize(
    ("number", "group", "status", "word"),
    [
        (signal.SIGINT, True, 130, "interrupted"),  # a terminal's Ctrl-C goes to all processes of the group
        (signal.SIGINT, False, 130, "interrupted"),
        (signal.SIGTERM, False, 143, "terminated"),
        (signal.SIGTERM, True, 143, "terminated"),
    ],
)
def test_a_signal_stops_a_dump_in_good_order(setting, warm, tmp_path, number, group, status, word):
    folder = tmp_path / "cache"
    pid, workers = start(setting, warm, folder)
    (os.killpg if group else os.kill)(pid, number)
    ended = warm.wait(pid, timeout=20)
    assert ended.status == status, ended.output
    assert "Traceback" not in ended.output
    assert f"softcache: {word}" in ended.output
    stopped = next(line for line in ended.output.splitlines() if line.startswith("stopped: "))
    done = int(stopped.split()[1].replace(",", ""))
    assert (
        stopped
        == f"stopped: {done:,} of 2,100 keys are in {folder} and stay valid: run the same command again to go on"
    )
    whole = [sorted((folder / f"view-{v:04d}").glob(f"*-{n:05d}.h5")) for v in range(3) for n in range(11)]
    assert done == sum(min(64, 700 - 64 * (k % 11)) for k, columns in enumerate(whole) if len(columns) == 3)
    assert wait_until(lambda: not alive(workers), 10)
    assert temporaries(folder) == []


def test_workers_die_with_a_parent_that_is_killed(setting, warm, tmp_path):
    pid, workers = start(setting, warm, tmp_path / "cache")
    os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    assert warm.wait(pid).status == -9
    assert wait_until(lambda: not alive(workers), 4), "torch's own watchdog takes 5 s"
    assert time.monotonic() - began < 4


def test_a_stopped_dump_goes_on_to_the_same_bytes(setting, warm, tmp_path):
    folder = tmp_path / "cache"
    pid, _ = start(setting, warm, folder)
    os.kill(pid, signal.SIGINT)
    assert warm.wait(pid).status == 130
    for out in (folder, tmp_path / "undisturbed"):
        command = setting.command(out, "--workers", "1")
        command[command.index("crop:pad=1+flip")] = "rrc+flip"
        assert warm.run(command).status == 0
    assert shards(folder) == shards(tmp_path / "undisturbed")
