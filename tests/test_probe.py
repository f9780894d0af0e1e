"""What ``softcache plan --probe`` measures: a disk in the long run, a teacher and a student."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from softcache.cli.plan import command
from softcache.dumping import disk
from softcache.dumping.disk import measure_disk, until_steady
from softcache.errors import SoftcacheError
from softcache.stages.plan import plan

MB = 10**6
PROBE = """
import os, sys, time
from pathlib import Path
from softcache.dumping.disk import measure_disk
os.fsync = lambda fd: time.sleep(60)
measure_disk(Path(sys.argv[1]), 1 << 30, chunk=1 << 16)
"""
SLOW = """
import time
from torch import nn


class Slow(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.last = nn.Linear(3, num_classes)

    def forward(self, x):
        time.sleep(0.02)
        return self.last(x.mean((2, 3)))


def make(num_classes=10):
    return Slow(num_classes)
"""


class Disk:
    """Takes 64 MB at a time, at 2 GB/s until ``fast`` bytes are full and at ``slow`` bytes a second after that."""

    def __init__(self, fast: float, slow: float):
        self.fast, self.slow, self.written = fast, slow, 0.0

    def __call__(self) -> tuple[int, float]:
        count = 64 * MB
        quick = min(count, max(0.0, self.fast - self.written))
        self.written += count
        return count, quick / 2e9 + (count - quick) / self.slow


@pytest.mark.parametrize("fast", [0, 64 * MB, 900 * MB])
def test_what_is_fast_before_the_disk_is_written_full_first(fast: float) -> None:
    parts, steady = until_steady(Disk(fast, 200e6), 128)
    assert steady
    last = parts[-disk.quarter(parts) :]
    assert sum(count for count, _ in last) / sum(seconds for _, seconds in last) == pytest.approx(200e6, rel=0.02)
    assert len(parts) * 64 * MB > fast


def test_a_disk_that_never_is_steady_is_left_in_time() -> None:
    speeds = iter([400e6 if step % 5 else 30e6 for step in range(1000)])
    parts, _ = until_steady(lambda: (64 * MB, 64 * MB / next(speeds)), 128, most_s=5.0)
    assert 5.0 <= sum(seconds for _, seconds in parts) < 8.0
    slower = iter([1e9 / (1.2**step) for step in range(1000)])
    parts, steady = until_steady(lambda: (64 * MB, 64 * MB / next(slower)), 20)
    assert (len(parts), steady) == (20, False)


def test_the_file_has_no_name_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed, sync = [], os.fsync

    def look(fd: int) -> None:
        listed.append((os.listdir(tmp_path), os.fstat(fd).st_size))
        sync(fd)

    monkeypatch.setattr(os, "fsync", look)
    found = measure_disk(tmp_path, 40 << 16, chunk=1 << 16)
    assert all(names == [] for names, _ in listed)
    assert [size for _, size in listed] == [(k + 1) << 16 for k in range(len(listed))]
    assert found.written == len(listed) << 16 <= 40 << 16
    assert found.bytes_per_second > 0
    assert found.place == str(tmp_path)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="looks at a process's files in /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_stays_however_it_ends(tmp_path: Path, how: signal.Signals) -> None:
    before = len(os.listdir(tmp_path))
    with subprocess.Popen([sys.executable, "-c", PROBE, str(tmp_path)], stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + 60
        while not any(target.startswith(f"{tmp_path}/") for target in open_files(process.pid)):
            assert time.monotonic() < end
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.001)
        process.send_signal(how)
    assert process.returncode != 0
    assert len(os.listdir(tmp_path)) == before


def open_files(pid: int) -> list[str]:
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(os.readlink(link))
        except OSError:  # closed meanwhile
            continue
    return found


def test_a_disk_that_is_full_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SoftcacheError, match=r"too little room to measure its disk, or --probe-gib is too small: 256"):
        measure_disk(tmp_path, 1 << 20)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, hard))
    try:
        with pytest.raises(SoftcacheError, match=r"can't measure the disk of .*: File too large"):
            measure_disk(tmp_path, 1 << 24, chunk=1 << 16)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


def test_rates_are_those_of_the_networks(here: Path) -> None:
    """Each takes at least 20 ms a batch: 64 rows of the teacher, 128 of the student."""
    Path("slow.py").write_text(SLOW)
    found = plan("slow.py:make", dataset="digits", probe=True, student="slow.py:make", batch_size=64, disk_rate=50.0)
    assert found.dumping is not None
    assert found.students is not None
    assert 0.6 * 64 / 0.02 < found.dumping.rate < 64 / 0.02
    assert 0.6 * 128 / 0.02 < found.students.rate < 128 / 0.02
    assert found.dumping.measured_on == "cpu"
    assert found.dumping.inputs_rate is not None
    assert found.disk is None
    assert found.disk_mb_per_s == 50.0


def test_the_disk_is_the_one_where_the_cache_would_lie(here: Path) -> None:
    options = ["--rows", "1000", "--classes", "10", "--rate", "100", "--probe", "--probe-gib", "0.26"]
    done = CliRunner().invoke(command, [*options, "--out", "deep/below/cache"])
    assert done.exit_code == 0, done.output
    assert f"the disk at the end of 268.44 MB in {here}" in done.output  # 4 times 64 MiB
    assert "and the disk takes " in done.output
    assert list(here.iterdir()) == []
