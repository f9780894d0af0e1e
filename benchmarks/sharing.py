"""Many trainings on one machine that read one cache: how much memory they take together, and how long one takes.

Each is a process of its own, ``softcache train`` of a student of one convolution with a hint, whose targets are
gathered from memory maps. The pages of a mapped shard are the page cache's: they are there once, whoever maps them.
What is compared is the memory that the shards take in all processes together (proportional set size, by Linux's
``/proc/PID/smaps``) with the size of the shards, and the time of an epoch of two trainings at once with that of one,
where two cores are there.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.made import make_arrays
from benchmarks.measure import Result, arguments, paired, ratio, row
from benchmarks.training import save_teacher
from softcache.console import show_messages
from softcache.stages.dump import dump

STUDENT = """
from torch import nn

def make(num_classes):
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.AvgPool2d(32), nn.Flatten(), nn.Linear(16, num_classes))
"""
CHILD = """
import json, sys
from softcache.stages.train import train
done = train("light.py:make", cache=("cache",), hint=("fitnet:teacher=layer1,student=0",), epochs=int(sys.argv[2]),
             batch_size=64, resident="off", device="cpu", out=sys.argv[1])
print(json.dumps(done.lines[-1]["epoch_s"]))
"""


def main() -> Result:
    options = arguments(__doc__, 3)
    show_messages(quiet=True)
    folder, start = Path(tempfile.mkdtemp(prefix="softcache-sharing-")), Path.cwd()
    many = 4 if options.tiny else 16
    rows = 256 if options.tiny else 5_000
    try:
        os.chdir(folder)
        Path("light.py").write_text(STUDENT)
        data = make_arrays(folder / "arrays", rows, 32, 10)
        save_teacher(folder / "teacher", "cifar:resnet20", 10)
        dump("teacher", dataset=data, augment="crop+flip", views=1, hint=("layer1",), out="cache", device="cpu")
        shards = sum(path.stat().st_size for path in Path("cache").rglob("*.h5"))
        together, most = _memory(many)
        taken = paired({"1": lambda: _epoch(1), "2": lambda: _epoch(2)}, options.repetitions)
    finally:
        os.chdir(start)
        shutil.rmtree(folder)
    mib = 2**20
    lines = [
        row(f"memory of the shards in {many} trainings together / their size", [together / shards], "≤ 1.05"),
        row(f"memory of the shards, if each of {many} had them alone / their size", [most / shards]),
        ratio("an epoch of each of 2 trainings / of one", taken["2"], taken["1"]),
    ]
    lines[0].note = f"shards of {shards / mib:.0f} MiB, in memory once: {together / mib:.0f} MiB"
    return Result("sharing", "One cache, many trainings", lines)


def _memory(count: int) -> tuple[int, int]:
    """Bytes of the cache's mapped files in ``count`` trainings: the sum of their shares, and of what each maps, while
    most of it was mapped in all of them. Processes are looked at one after the other, so that single sums are off where
    mappings grow meanwhile; this is the median of them."""
    started = [_start(number, 3) for number in range(count)]
    found: list[tuple[int, int]] = []
    try:
        while all(process.poll() is None for process in started):
            both = [_mapped(process.pid) for process in started]
            found.append((sum(share for share, _ in both), sum(whole for _, whole in both)))
            time.sleep(0.5)
    finally:
        for process in started:
            process.kill()
            process.wait()
        shutil.rmtree("runs", ignore_errors=True)
    most = max(whole for _, whole in found)
    settled = [(share, whole) for share, whole in found if whole >= 0.9 * most]
    return int(statistics.median(share for share, _ in settled)), int(statistics.median(whole for _, whole in settled))


def _mapped(pid: int) -> tuple[int, int]:
    """Of the shards of the cache that a process maps: its proportional share, and what of them is in memory."""
    share = whole = 0
    shard = False
    try:
        text = Path(f"/proc/{pid}/smaps").read_text()
    except OSError:
        return 0, 0
    for line in text.splitlines():
        first = line.split(None, 1)[0]
        if not first.endswith(":"):  # the head of a mapping: addresses, rights, …, path
            shard = "/cache/" in line and ".h5" in line
        elif shard and first in ("Pss:", "Rss:"):
            amount = int(line.split()[1]) * 1024
            share, whole = (share + amount, whole) if first == "Pss:" else (share, whole + amount)
    return share, whole


def _epoch(count: int) -> float:
    """The time of the last of two epochs: the mean of ``count`` trainings at once."""
    started = [_start(number, 2) for number in range(count)]
    seconds: Sequence[float] = [json.loads(process.communicate()[0].splitlines()[-1]) for process in started]
    shutil.rmtree("runs", ignore_errors=True)
    return sum(seconds) / count


def _start(number: int, epochs: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, f"runs/{number}", str(epochs)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)


if __name__ == "__main__":
    main().show()
