"""How many CPU threads the commands take, and how they wait: by affinity, quota and load, unless the user says it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from softcache.threads import affinity, busy_processors, cpu_quota, usable_cores

CODE = """
import os, sys
from softcache.threads import settle_threads
print(settle_threads({asked}, workers={workers}))
print(*(os.environ.get(name, "-") for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")))
"""
NAMES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def settled(asked: int | None = None, workers: int = 0, before: str = "", **given: str) -> tuple[str, str]:
    """What a new process says and sets."""
    environment = {name: value for name, value in os.environ.items() if name not in NAMES} | given
    code = before + CODE.format(asked=asked, workers=workers)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    said, variables = done.stdout.splitlines()
    return said, variables


def test_what_the_user_has_set_stays() -> None:
    assert settled(OMP_NUM_THREADS="3") == ("CPU threads: 3, as OMP_NUM_THREADS says", "3 - -")
    assert settled(MKL_NUM_THREADS="5") == ("CPU threads: 5, as MKL_NUM_THREADS says", "- - -")
    said, variables = settled(2, OMP_WAIT_POLICY="ACTIVE")
    assert (said, variables) == ("2 CPU threads; they wait as OMP_WAIT_POLICY says", "2 ACTIVE -")
    # --threads is asked for in so many words
    assert settled(1, OMP_NUM_THREADS="3") == ("1 CPU thread", "1 - -")


def test_threads_sleep_beside_workers_and_beside_other_work() -> None:
    said, variables = settled(2, workers=len(affinity()))
    assert variables == "2 PASSIVE -"
    assert said.startswith("2 CPU threads, which sleep while they wait: ")
    others = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in affinity()]
    try:
        said, variables = settled(2)
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert variables == "2 PASSIVE -"
    assert said.startswith("2 CPU threads, which sleep while they wait: ")


def test_the_number_of_threads_follows_the_affinity_and_not_the_load() -> None:
    one = min(affinity())
    assert settled(before=f"import os; os.sched_setaffinity(0, {{{one}}})")[1].split()[0] == "1"


def test_nothing_is_set_once_torch_is_there() -> None:
    assert settled(before="import torch") == ("None", "- - -")


def test_a_training_says_what_it_took_and_a_quick_command_does_not(here: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    started = [sys.executable, "-m", "softcache", "--threads", "1"]
    for command, said in (("teach", ["1 CPU thread"]), ("layers", [])):
        model = ["--size", "8", "--epochs", "1"] if command == "teach" else []
        asked = [*started, command, "--model", "cifar:resnet8", *model]
        done = subprocess.run(asked, env=environment, capture_output=True, text=True, check=True)
        assert done.stderr.splitlines()[:1] == said


@pytest.mark.parametrize(("busy", "expected"), [([0, 0], 0.0), ([10, 0], 1.0), ([10, 5], 1.5), ([10, 10], 2.0)])
def test_busy_processors_are_counted_from_ticks(tmp_path: Path, busy: list[int], expected: float) -> None:
    """``user nice system idle iowait irq softirq steal guest``: those waiting for a disk are free."""
    stat = tmp_path / "stat"
    start = [f"cpu{k} 100 0 50 1000 30 0 0 0 7" for k in (0, 1, 2)]
    stat.write_text("\n".join(["cpu  1 2 3", *start, "intr 5"]))

    class Ticking(type(stat)):  # type: ignore[misc]
        """The file as it is when it is read for the second time: ten ticks later."""

        reads = 0

        def read_text(self, *arguments: object, **options: object) -> str:
            Ticking.reads += 1
            more = [0, 0] if Ticking.reads == 1 else busy
            rest = [0, 0] if Ticking.reads == 1 else [10 - ticks for ticks in busy]
            lines = [f"cpu{k} {100 + more[k]} 0 50 {1000 + rest[k]} 30 0 0 0 7" for k in (0, 1)]
            return "\n".join([*lines, "cpu2 999 0 0 0 0 0 0 0 0"])

    assert busy_processors({0, 1}, Ticking(stat), seconds=0.0) == pytest.approx(expected)


def test_busy_processors_are_never_more_than_there_are(tmp_path: Path) -> None:
    assert 0 <= busy_processors(affinity()) <= len(affinity())
    assert 0 <= busy_processors(affinity(), tmp_path / "none") <= len(affinity())


def test_quotas_of_both_versions_of_control_groups_bound_the_threads(tmp_path: Path) -> None:
    membership = tmp_path / "cgroup"
    root = tmp_path / "fs/cgroup"
    (root / "a/b").mkdir(parents=True)
    membership.write_text("0::/a/b\n")
    assert cpu_quota(root, membership) == float("inf")
    (root / "a/b/cpu.max").write_text("max 100000\n")
    assert cpu_quota(root, membership) == float("inf")
    (root / "a/cpu.max").write_text("250000 100000\n")  # a group above it
    assert cpu_quota(root, membership) == 2.5
    (root / "a/b/cpu.max").write_text("150000 100000\n")
    assert cpu_quota(root, membership) == 1.5
    (root / "cpu/c").mkdir(parents=True)
    (root / "cpu/c/cpu.cfs_quota_us").write_text("50000\n")
    (root / "cpu/c/cpu.cfs_period_us").write_text("100000\n")
    membership.write_text("4:memory:/c\n2:cpu,cpuacct:/c\n")
    assert cpu_quota(root, membership) == 0.5
    (root / "cpu/c/cpu.cfs_quota_us").write_text("-1\n")
    assert cpu_quota(root, membership) == float("inf")


def test_two_processors_of_one_core_are_one_thread(tmp_path: Path) -> None:
    for number in affinity():
        folder = tmp_path / f"devices/system/cpu/cpu{number}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{number // 2 * 2}-{number // 2 * 2 + 1}\n")
    assert usable_cores(tmp_path) == len({number // 2 for number in affinity()})


def test_help_says_nothing_of_threads() -> None:
    done = subprocess.run([sys.executable, "-m", "softcache", "train", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert not re.search("CPU thread", done.stderr)
