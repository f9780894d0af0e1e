"""How many CPU threads torch uses, and how they wait for each other. Nothing here imports torch.

OpenMP's threads wait in a loop that keeps a core busy. Where another process needs that core, each wait takes as long
as the system lets the other run, and two threads are slower than one. Threads that sleep instead are nearly as fast as
one thread there, but slower than spinning ones on idle cores (docs/speed.md has the measurements).

The number of threads decides the last bits of sums. It therefore depends on the machine alone, so that the same command
gives the same bits however busy the machine is. Only the way of waiting, which changes no bits, depends on the load.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import MutableMapping
from pathlib import Path

from softcache.distributed import local_world

NUMBER = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
SPINS = "10000"  # about a tenth of GCC's default: covers the gaps within a training step, and ends soon after
LOOKED_S = 0.1


def settle_threads(
    asked: int | None, *, workers: int = 0, environment: MutableMapping[str, str] = os.environ
) -> str | None:
    """Sets OpenMP's variables in ``environment`` and returns a sentence on what was chosen.

    ``asked``: a number of threads, ``None`` for one a core, and for a share of the cores where torchrun has started
    several processes here. ``workers``: busy processes that will run beside. Variables
    that are set already are left as they are. Nothing is done, and ``None`` returned, where torch has been imported,
    because it reads them only then.
    """
    if "torch" in sys.modules:
        return None
    given = next((name for name in NUMBER if name in environment), None)
    if asked is None and given is not None:
        return f"CPU threads: {environment[given]}, as {given} says"
    cores = max(1, usable_cores() // local_world())
    threads = asked or cores
    environment["OMP_NUM_THREADS"] = str(threads)
    said = f"{threads} CPU thread" + ("s" if threads > 1 else "")
    own = next((name for name in WAITING if name in environment), None)
    if threads == 1:
        return said
    if own is not None:
        return f"{said}; they wait as {own} says"
    processors = len(affinity())
    busy = busy_processors(affinity())
    if busy + workers > processors - threads + 0.5:
        environment["OMP_WAIT_POLICY"] = "PASSIVE"
        beside = f" and {workers} workers will run" if workers else ""
        return f"{said}, which sleep while they wait: {busy:.1f} of {processors} processors are busy{beside}"
    environment["GOMP_SPINCOUNT"] = SPINS
    return f"{said}; {busy:.1f} of {processors} processors are busy with other work"


def affinity() -> set[int]:
    """The processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def usable_cores(system: Path = Path("/sys")) -> int:
    """Physical cores that this process may run on, within the CPU quota of its control group; at least 1."""
    cores = set()
    for number in affinity():
        siblings = system / f"devices/system/cpu/cpu{number}/topology/thread_siblings_list"
        try:
            cores.add(siblings.read_text().strip())
        except OSError:
            cores.add(str(number))
    return max(1, int(min(len(cores), cpu_quota(system / "fs/cgroup"))))


def cpu_quota(root: Path, membership: Path = Path("/proc/self/cgroup")) -> float:
    """Processors' worth of time that the control group and those above it allow, infinity where none says.

    ``root``: where control groups are mounted. Both versions of them are understood.
    """
    try:
        lines = [line.split(":", 2) for line in membership.read_text().splitlines()]
    except OSError:
        return float("inf")
    least = float("inf")
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers == "":
            mount, files = root, ["cpu.max"]
        elif "cpu" in controllers.split(","):
            mount, files = root / "cpu", ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        else:
            continue
        folder = mount / path.lstrip("/")
        while True:
            try:
                quota, period = " ".join((folder / name).read_text() for name in files).split()
                if quota not in ("max", "-1"):
                    least = min(least, int(quota) / int(period))
            except (OSError, ValueError, ZeroDivisionError):
                pass  # no limit is set there
            if folder == mount or mount not in folder.parents:
                break
            folder = folder.parent
    return least


def busy_processors(numbers: set[int], stat: Path = Path("/proc/stat"), seconds: float = LOOKED_S) -> float:
    """How many of these processors are busy, on average over ``seconds`` in which this process sleeps.

    Where the system has no ``/proc/stat`` it is the average load of the last minute.
    """
    try:
        before = _times(stat, numbers)
        time.sleep(seconds)
        after = _times(stat, numbers)
    except (OSError, ValueError, IndexError):
        return min(os.getloadavg()[0], float(len(numbers)))
    busy = 0.0
    for number, (idle, total) in after.items():
        was_idle, was_total = before.get(number, (idle, total))
        if total > was_total:
            busy += 1 - (idle - was_idle) / (total - was_total)
    return busy


def _times(stat: Path, numbers: set[int]) -> dict[int, tuple[int, int]]:
    """Ticks of each processor since the start of the system: idle (or waiting for a disk) ones, and all."""
    found = {}
    for line in stat.read_text().splitlines():
        name, *fields = line.split()
        if name.startswith("cpu") and name[3:].isdecimal() and int(name[3:]) in numbers:
            ticks = [int(field) for field in fields[:8]]  # guests' time is part of that of users
            found[int(name[3:])] = (ticks[3] + ticks[4], sum(ticks))
    return found
